"""A storage on an object store, and its working copies on local disks.

Object stores can neither append nor rename, so a trial is written on its node's disk and whole files are copied to the
store at epoch boundaries, ``result.json`` last: what is there is always a trial that can be continued. The driver
keeps a working copy of the small files, from which plan, MLflow and leaderboard are made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from cryobench.conf.errors import StorageError
from cryobench.datasets.store.location import open_filesystem
from cryobench.workers.record.folder import CONFUSION, CONFUSION_PICTURE, EVENTS, RESULT, SAMPLES_PICTURE, SPEC

_SMALL = {SPEC, EVENTS, RESULT, CONFUSION, SAMPLES_PICTURE, CONFUSION_PICTURE}
#: Files that say of others that they are whole, in the order in which they may be believed.
_LAST = ("state.json", EVENTS, RESULT)


class Mirror:
    """Whole files to and from ``url``, e.g. ``s3://bucket/cryobench`` (any URL that pyarrow's filesystems read).

    Raises:
        ConfigError: from the constructor, for a URL that names no filesystem.
        StorageError: from every method, if the store cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = open_filesystem(url)
        self._known: dict[str, tuple[int, int]] = {}

    def pull(self, storage: Path) -> None:
        """Bring sweeps, leaderboard and the small files of all trials into the working copy ``storage``."""
        for relative, info in self._listed("").items():
            if Path(relative).name in _SMALL or relative.startswith(("sweeps/", "leaderboard/")):
                self._fetch(relative, info, storage)

    def pull_trial(self, storage: Path, trial_id: str, *, whole: bool) -> None:
        """Make the working copy of a trial's folder what the store holds: its small files, or all of them.

        ``whole`` is for the node that is about to run it: what an earlier attempt left there is removed.
        """
        found = self._listed(f"trials/{trial_id}")
        if whole:
            for path in _files(storage / "trials" / trial_id):
                if path.relative_to(storage).as_posix() not in found:
                    path.unlink()
        for relative, info in found.items():
            if whole or Path(relative).name in _SMALL:
                self._fetch(relative, info, storage)

    def push_trial(self, storage: Path, trial_id: str) -> None:
        """Make the store hold what the working copy of a trial's folder does."""
        folder = storage / "trials" / trial_id
        here = {path.relative_to(storage).as_posix(): path for path in _files(folder)}
        for relative in sorted(here, key=_order):
            self.push(storage, relative)
        for relative in self._listed(f"trials/{trial_id}").keys() - here.keys():
            self._try(lambda name=relative: self._fs.delete_file(f"{self._root}/{name}"))

    def push(self, storage: Path, relative: str) -> None:
        """Copy one file to the store unless it has not changed since."""
        path = storage / relative
        stat = path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._known.get(relative) == stamp:
            return
        content = path.read_bytes()
        self._try(lambda: self._write(f"{self._root}/{relative}", content))
        self._known[relative] = stamp

    def push_projections(self, storage: Path) -> None:
        """Copy sweeps and leaderboard to the store."""
        for folder in ("sweeps", "leaderboard"):
            for path in _files(storage / folder):
                self.push(storage, path.relative_to(storage).as_posix())

    def _fetch(self, relative: str, info: Any, storage: Path) -> None:
        stamp = (int(info.size), int(info.mtime_ns or 0))
        path = storage / relative
        if self._known.get(f"remote:{relative}") == stamp and path.exists():
            return
        content: bytes = self._try(lambda: self._fs.open_input_stream(f"{self._root}/{relative}").read())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.fetched")
        temporary.write_bytes(content)
        temporary.replace(path)
        self._known[f"remote:{relative}"] = stamp

    def _write(self, target: str, content: bytes) -> None:
        if self._fs.type_name in ("local", "subtree"):
            self._fs.create_dir(str(Path(target).parent), recursive=True)
        with self._fs.open_output_stream(target) as stream:
            stream.write(content)

    def _listed(self, below: str) -> dict[str, Any]:
        base = f"{self._root}/{below}".rstrip("/")
        selector = fs.FileSelector(base, allow_not_found=True, recursive=True)
        found = self._try(lambda: self._fs.get_file_info(selector))
        return {
            info.path.removeprefix(self._root).lstrip("/"): info
            for info in found
            if info.type == fs.FileType.File and not info.base_name.startswith(".")
        }

    def _try(self, action: Any) -> Any:
        try:
            return action()
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"Storage {self.url} cannot be used ({' '.join(str(error).split())[:200]}). Check the address, your "
                "credentials and the network, then run the same command again: trials continue from what is there."
            ) from error


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def _order(relative: str) -> tuple[int, str]:
    name = Path(relative).name
    return (_LAST.index(name) + 1 if name in _LAST else 0, relative)
