"""A folder on a local disk or on an object store, read file by file."""

from __future__ import annotations

import errno
import stat
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from cryobench.conf.errors import ConfigError, StorageError

#: No file of a store is larger: a tile of one array at most.
_MOST_BYTES = 2**34


class Location(Protocol):
    """A folder whose files can be read."""

    @property
    def name(self) -> str:
        """The folder's own name."""

    def read(self, relative: str) -> bytes:
        """A whole file; raises FileNotFoundError if there is none."""


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    def __str__(self) -> str:
        return str(self.path)

    def read(self, relative: str) -> bytes:
        """A whole file; raises OSError where there is anything else, which might be waited for without end."""
        path = self.path / relative
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:
            raise OSError(errno.EINVAL, f"no file of at most {_MOST_BYTES:,} bytes", str(path))
        return path.read_bytes()


class RemoteFolder:
    """A folder at a URL that pyarrow's filesystems read, e.g. ``s3://bucket/data/glid.zarr``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = open_filesystem(url)
        self.name = self._root.rpartition("/")[2]

    def __str__(self) -> str:
        return self.url

    def read(self, relative: str) -> bytes:
        """A whole file.

        Raises:
            StorageError: the store cannot be reached or refuses.
        """
        try:
            with self._fs.open_input_stream(f"{self._root}/{relative}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(
                f"{self.url}: {relative} cannot be read ({' '.join(str(error).split())[:200]}). Check the address, "
                "your credentials and the network, then run the same command again."
            ) from error


def is_url(where: Path | str) -> bool:
    """Whether ``where`` is an address rather than a local folder."""
    return isinstance(where, str) and "://" in where


def locate(where: Path | str) -> Location:
    """The folder at a path or URL.

    Raises:
        ConfigError: a URL that names no filesystem.
    """
    return RemoteFolder(str(where)) if is_url(where) else LocalFolder(Path(where))


def below(where: Path | str, name: str) -> Path | str:
    """``name`` in the folder ``where``; a URL's query stays at its end."""
    if not is_url(where):
        return Path(where) / name
    base, mark, query = str(where).partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


@cache
def open_filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and the path in it.

    Raises:
        ConfigError: a URL that names no filesystem.
    """
    import pyarrow as pa
    from pyarrow import fs

    try:
        filesystem, root = fs.FileSystem.from_uri(url)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(
            f"{url}: {' '.join(str(error).split())[:200]}. Expected a local folder or a URL such as "
            "s3://bucket/folder or gs://bucket/folder."
        ) from error
    return filesystem, root.rstrip("/")
