"""Downloaded archives, unpacked inside their folder and nowhere else: zip and tar, whole or in parts."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.errors import DataError, MissingDataError, disk_full
from cryobench.datasets.raw.scenes import source_of

#: What an archive may hold at most; the largest data set has 60 GB packed.
MAX_BYTES = 500 * 10**9
MAX_MEMBERS = 2_000_000
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
    if not source.exists():
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

    Members are written under a temporary name and renamed, and those that are there in full are passed over.

    Raises:
        DataError: a member outside ``target``, a link or device, more than the limits allow, or damage.
        DiskFullError: no space left.
    """
    marker = target / f".{archive.name}.unpacked.json"
    stamp = [[part.name, part.stat().st_size, part.stat().st_mtime_ns] for part in archive.parts]
    if marker.exists() and json.loads(marker.read_text()) == stamp:
        return
    target.mkdir(parents=True, exist_ok=True)
    written = members = 0
    try:
        for name, size, read in _members(archive, progress):
            members, written = members + 1, written + size
            if written > max_bytes or members > max_members:
                raise DataError(
                    f"{archive.name} unpacks to more than {max_bytes:,} bytes or {max_members:,} files (at member "
                    f"{name}). No data set here is that large: is it the right file? If so, unpack it by hand."
                )
            _write(read, _inside(archive, target, name), size, archive)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise DataError(
            f"{archive.name} is damaged or not whole ({error}). Fetch it again; what was unpacked of it is kept."
        ) from error
    except OSError as error:
        full = disk_full(error, target)
        raise full or DataError(f"{archive.name} cannot be unpacked into {target} ({error}).") from error
    marker.write_text(json.dumps(stamp))


def _members(archive: Archive, progress: Progress) -> Iterator[tuple[str, int, Callable[[], IO[bytes] | None]]]:
    """Name, size and opener of every regular file; anything else but folders is refused."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(_Chained(archive.parts)) as packed:
            done = 0
            for member in packed.infolist():
                if member.is_dir():
                    continue
                kind = member.external_attr >> 28
                if kind not in (0, 0o10):
                    raise _refused(archive, member.filename, "a link or device")
                yield member.filename, member.file_size, lambda member=member: packed.open(member)  # type: ignore[misc]
                done += member.compress_size
                progress(done, archive.size)
        return
    source = _Chained(archive.parts)
    with tarfile.open(fileobj=source, mode="r|*") as packed_tar:
        for entry in packed_tar:
            if entry.isdir():
                continue
            if not entry.isreg():
                raise _refused(archive, entry.name, "a link or device")
            yield entry.name, entry.size, lambda entry=entry: packed_tar.extractfile(entry)  # type: ignore[misc]
            progress(source.tell(), archive.size)


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
        f"{archive.name}: member {name!r} is {what}, which no data set has. Nothing of it was written; "
        "fetch the archive from where it is published."
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
