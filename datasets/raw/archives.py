"""Downloaded archives, unpacked inside their folder and nowhere else: zip and tar, whole or in parts.

Members are written into a folder beside the target, and moved into it when the archive was read to its end and every
checksum that it carries was compared: of an archive that is damaged or refused, nothing is in the target.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.errors import DataError, MissingDataError, disk_full
from cryobench.datasets.raw.scenes import source_of

#: What an archive may hold at most; the largest data set has 60 GB packed.
MAX_BYTES = 500 * 10**9
MAX_MEMBERS = 2_000_000
#: How many times its packed size an archive may unpack to; rasters reach some ten.
MAX_RATIO = 200
_NAME = re.compile(r"^(?P<whole>.+\.(?:zip|tar|tgz|tbz2|txz|tar\.(?:gz|bz2|xz)))(?P<part>[a-z]{2})?$", re.IGNORECASE)
_CHUNK = 1 << 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Archive:
    """An archive: its name, and its file or, in order, the parts it was split into."""

    name: str
    parts: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes, packed."""
        return sum(part.stat().st_size for part in self.parts)


def archives_at(source: Path) -> list[Archive]:
    """The archives in a folder, or the one that ``source`` is (any of its parts)."""
    folder = source if source.is_dir() else source.parent
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _NAME.match(path.name)
        if match and path.is_file():
            groups.setdefault(match["whole"], []).append(path)
    found = [Archive(name, tuple(parts)) for name, parts in groups.items()]
    return found if source.is_dir() else [archive for archive in found if source in archive.parts]


def raw_folder(spec: DatasetSpec, source: Path, target: Path, progress: Progress = lambda done, total: None) -> Path:
    """The folder that holds the raw files of ``spec``: at or below ``source``, or unpacked from its archives.

    Args:
        spec: the data set.
        source: a folder of raw files, a folder of archives, or an archive.
        target: where archives are unpacked; what an earlier attempt unpacked is not unpacked again.
        progress: told packed bytes read and in total.

    Raises:
        MissingDataError: nothing of the data set is there.
        DataError: an archive that is damaged, too large, or reaches out of its folder.
        DiskFullError: no space left; what was unpacked is kept.
    """
    if not os.path.exists(source):  # false also for what no path can be
        raise MissingDataError(
            f"{source} does not exist. Expected the unpacked folder of '{spec.name}' or its archive "
            f"(published: {spec.source or '?'}); cryobench data fetch {spec.name} downloads it if its address is known."
        )
    archives = archives_at(source)
    if source.is_dir():
        try:
            return source_of(spec, source)
        except MissingDataError:
            if not archives:
                raise
    if not archives:
        raise DataError(
            f"{source} is neither a folder nor an archive. Expected .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz."
        )
    total, before = sum(archive.size for archive in archives), 0
    for archive in archives:
        unpack(archive, target, progress=lambda done, _, so_far=before: progress(so_far + done, total))  # type: ignore[misc]
        before += archive.size
    return source_of(spec, target)


def unpack(
    archive: Archive,
    target: Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
    progress: Progress = lambda done, total: None,
) -> None:
    """Unpack ``archive`` into ``target``; an archive that was unpacked whole before is left alone.

    An interrupted attempt at the same archive continues.

    Raises:
        DataError: a member outside ``target``, a link or device, more than the limits or the disk allow, or damage.
        DiskFullError: no space left.
    """
    marker = target / f".{archive.name}.unpacked.json"
    stamp = json.dumps([[part.name, part.stat().st_size, part.stat().st_mtime_ns] for part in archive.parts])
    if marker.exists() and marker.read_text() == stamp:
        return
    staging = target.with_name(f".{target.name}.{archive.name}.partial")
    begun = staging / ".stamp.json"
    if not begun.exists() or begun.read_text() != stamp:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        begun.write_text(stamp)
    try:
        _unpack_into(staging, archive, _Budget(archive, staging, max_bytes, max_members), progress)
    except DataError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    begun.unlink()
    _move(archive, staging, target)
    marker.write_text(stamp)


def _unpack_into(staging: Path, archive: Archive, budget: _Budget, progress: Progress) -> None:
    """Write every member into ``staging``; whatever is wrong with the archive is a `DataError`."""
    try:
        for name, size, read in _members(archive, budget, progress):
            budget.take(name, size)
            _write(read, _inside(archive, staging, name), size, archive)
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{archive.name} is damaged or not whole ({error}). Fetch it again; {_NOTHING}") from error
    except (NotImplementedError, RuntimeError) as error:  # as zipfile says that it lacks a method or a password
        raise DataError(
            f"{archive.name} cannot be unpacked here ({error}). Unpack it by hand and give the folder; {_NOTHING}"
        ) from error
    except OSError as error:
        raise (
            disk_full(error, staging)
            or DataError(f"{archive.name} cannot be unpacked into {staging.parent} ({error}); {_NOTHING}")
        ) from error


_NOTHING = "nothing of it was written."


@dataclass
class _Budget:
    """What an archive may unpack to: by the limits, by its own size, by the disk."""

    archive: Archive
    folder: Path
    max_bytes: int
    max_members: int
    written: int = 0
    members: int = 0

    def __post_init__(self) -> None:
        there = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        self.free = shutil.disk_usage(self.folder).free + there

    def take(self, name: str, size: int) -> None:
        """One member more.

        Raises:
            DataError: it is too much.
        """
        self.members, self.written = self.members + 1, self.written + size
        if self.written > self.max_bytes or self.members > self.max_members:
            raise DataError(
                f"{self.archive.name} unpacks to more than {self.max_bytes:,} bytes or {self.max_members:,} files (at "
                f"member {name}). No data set here is that large: is it the right file? If so, unpack it by hand; "
                f"{_NOTHING}"
            )
        if self.written > MAX_RATIO * max(self.archive.size, 1 << 16):
            raise DataError(
                f"{self.archive.name} unpacks to more than {MAX_RATIO} times its {self.archive.size:,} bytes (at "
                f"member {name}), as no data set does. If it is the right file, unpack it by hand; {_NOTHING}"
            )
        if self.written > self.free:
            raise DataError(
                f"{self.archive.name} unpacks to more than the {self.free:,} bytes that are free in "
                f"{self.folder.parent}. Free some space; {_NOTHING}"
            )


def _members(
    archive: Archive, budget: _Budget, progress: Progress
) -> Iterator[tuple[str, int, Callable[[], IO[bytes] | None]]]:
    """Name, size and opener of every regular file; anything else but folders is refused.

    A zip's list is gone through as a whole first. A tar is read to the end of its file, behind which its checksum is.
    """
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(_Chained(archive.parts)) as packed:
            files = [member for member in packed.infolist() if not member.is_dir()]
            listed = replace(budget)
            for member in files:
                if member.external_attr >> 28 not in (0, 0o10):
                    raise _refused(archive, member.filename, "a link or device")
                _inside(archive, budget.folder, member.filename)
                listed.take(member.filename, member.file_size)
            done = 0
            for member in files:
                yield member.filename, member.file_size, lambda member=member: packed.open(member)  # type: ignore[misc]
                done += member.compress_size
                progress(done, archive.size)
        return
    source = _Chained(archive.parts)
    with _unpacked(source) as stream, tarfile.open(fileobj=stream, mode="r|") as packed_tar:
        for entry in packed_tar:
            if entry.isdir():
                continue
            if not entry.isreg():
                raise _refused(archive, entry.name, "a link or device")
            yield entry.name, entry.size, lambda entry=entry: packed_tar.extractfile(entry)  # type: ignore[misc]
            progress(source.tell(), archive.size)
        while stream.read(_CHUNK):
            pass


def _unpacked(source: _Chained) -> Any:
    """The tar in ``source``, by what its first bytes say it is packed with."""
    first = source.read(6)
    source.seek(0)
    if first.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=source)
    if first.startswith(b"BZh"):
        return bz2.BZ2File(source)
    return lzma.LZMAFile(cast(IO[bytes], source)) if first.startswith(b"\xfd7zXZ") else source


def _move(archive: Archive, staging: Path, target: Path) -> None:
    """Everything in ``staging`` to its place in ``target``, over what is there."""
    files = [path for path in sorted(staging.rglob("*")) if path.is_file()]
    places = [_inside(archive, target, path.relative_to(staging).as_posix()) for path in files]  # links, before any
    for path, place in zip(files, places, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    shutil.rmtree(staging)


def _inside(archive: Archive, target: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in pure.parts[0]:
        raise _refused(archive, name, "a path that leads out of the folder")
    path = target.joinpath(*pure.parts)
    if not path.resolve().is_relative_to(target.resolve()):
        raise _refused(archive, name, "a path that leads out of the folder")
    return path


def _refused(archive: Archive, name: str, what: str) -> DataError:
    return DataError(
        f"{archive.name}: member {name!r} is {what}, which no data set has. Fetch the archive from where it is "
        f"published; {_NOTHING}"
    )


def _write(read: Callable[[], IO[bytes] | None], path: Path, size: int, archive: Archive) -> None:
    if path.exists() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    stream = read()
    if stream is None:
        raise _refused(archive, str(path), "no regular file")
    with stream, part.open("wb") as file:
        left = size
        while block := stream.read(_CHUNK):
            left -= len(block)
            if left < 0:
                raise DataError(f"{archive.name}: {path.name} is larger than the archive says. Fetch it again.")
            file.write(block)
    if left:
        raise EOFError(f"{path.name} ends {left} bytes early")
    part.replace(path)


class _Chained(io.RawIOBase):
    """The parts of a split archive as one file."""

    def __init__(self, parts: tuple[Path, ...]) -> None:
        self._files = [part.open("rb") for part in parts]
        self._ends: list[int] = []
        for part in parts:
            self._ends.append((self._ends[-1] if self._ends else 0) + part.stat().st_size)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        pieces = []
        left = self._ends[-1] - self._at if size < 0 else size
        start = 0
        for file, end in zip(self._files, self._ends, strict=True):
            if left and self._at < end:
                file.seek(self._at - start)
                piece = file.read(min(left, end - self._at))
                pieces.append(piece)
                self._at += len(piece)
                left -= len(piece)
            start = end
        return b"".join(pieces)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
