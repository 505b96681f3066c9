"""A store that only pyarrow's filesystems reach, or a folder given as file://: nothing is written on condition."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from cryobench.workers.record.object_store import Stored, store_trouble, write_unconditionally

T = TypeVar("T")


class PlainStore:
    """An `ObjectStore`; the arguments are the URL to be shown, pyarrow's filesystem and the path in it."""

    def __init__(self, url: str, filesystem: Any, root: str) -> None:
        self.url, self._fs, self._root = url, filesystem, root
        self.unconditional: str | None = f"{filesystem.type_name} through pyarrow has no conditional writes"

    def files(self, below: str = "") -> dict[str, Stored]:
        """All files below a folder."""
        return {
            info.path.removeprefix(self._root).lstrip("/"): _stored(info)
            for info in self._infos(below, recursive=True)
            if info.type == fs.FileType.File and not info.base_name.startswith(".")
        }

    def folders(self, below: str) -> set[str]:
        """The names of the folders in a folder."""
        return {i.base_name for i in self._infos(below, recursive=False) if i.type == fs.FileType.Directory}

    def read(self, name: str) -> tuple[bytes, Stored]:
        """A file's content."""
        stored = self._info(name)
        return self._try(lambda: bytes(self._fs.open_input_stream(f"{self._root}/{name}").read())), stored

    def fetch(self, name: str, target: Path) -> Stored:
        """A file into a file."""
        stored = self._info(name)

        def copy() -> None:
            with self._fs.open_input_stream(f"{self._root}/{name}") as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)

        self._try(copy)
        return stored

    def write(self, name: str, content: bytes | Path) -> Stored:
        """A file of this content, or of another file's."""
        target = f"{self._root}/{name}"

        def put() -> None:
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(target) as stream:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, stream)
                else:
                    stream.write(content)

        self._try(put)
        return self._info(name)

    def write_if(self, name: str, content: bytes, known: Stored | None) -> Stored | None:
        """Write over a known state, as well as it can be seen."""
        return write_unconditionally(self, name, content, known)

    def delete(self, names: Iterable[str]) -> None:
        """Remove files."""
        for name in names:
            try:
                self._try(lambda name=name: self._fs.delete_file(f"{self._root}/{name}"))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def _info(self, name: str) -> Stored:
        info = self._try(lambda: self._fs.get_file_info(f"{self._root}/{name}"))
        if info.type != fs.FileType.File:
            raise FileNotFoundError(name)
        return _stored(info)

    def _infos(self, below: str, *, recursive: bool) -> list[Any]:
        base = f"{self._root}/{below}".rstrip("/")
        selector = fs.FileSelector(base, allow_not_found=True, recursive=recursive)
        found: list[Any] = self._try(lambda: self._fs.get_file_info(selector))
        return found

    def _try(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise store_trouble(self.url, error) from error


def _stored(info: Any) -> Stored:
    return Stored(int(info.size), f"{info.size} {info.mtime_ns or 0}")
