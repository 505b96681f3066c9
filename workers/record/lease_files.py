"""The file that says who holds a lease, and how it is written so that of two writers only one succeeds.

A `LeaseFile` is read with a tag and written on the condition that it still has that tag. On an object store the store
sees to that (`workers/record/mirror.py`). On a local or shared folder every writing is a file of its own, numbered,
``.lease.json.7`` for one; a number is taken by a hard link, which of many machines exactly one makes, also over NFS,
and without any lock. The highest number counts, and it is never removed, so that nobody who slept long mistakes an
old state for the present one.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryobench.conf.errors import StorageError, storage_trouble
from cryobench.workers.record.object_store import ObjectStore, Stored

#: What file systems without hard links answer.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


@dataclass(frozen=True)
class Written:
    """What a lease file holds, and the tag that names exactly this state of it."""

    content: bytes
    tag: str


class LeaseFile(Protocol):
    """Where a lease is kept. Both methods raise StorageError while the storage cannot be used."""

    @property
    def unconditional(self) -> str | None:
        """Why writings are not conditional here, in words for the user; None where they are."""

    def read(self) -> Written | None:
        """What it holds; None where there never was a lease."""

    def write(self, content: bytes, tag: str | None) -> str | None:
        """Write if it still has ``tag`` (None: if there is none yet); the new tag, or None where another came first."""

    def hide(self) -> None:
        """Remove what readers see of it: nobody holds the lease."""


class FolderLeaseFile:
    """A lease in a folder, local or shared; ``shown`` (``lease.json``) is a copy of it for readers."""

    unconditional = None

    def __init__(self, shown: Path) -> None:
        self._shown = shown
        self._prefix = f".{shown.name}."

    def __str__(self) -> str:
        return str(self._shown)

    def read(self) -> Written | None:
        """What it holds."""
        with _explained(self._shown):
            while numbers := self._numbers():
                with suppress(FileNotFoundError):  # replaced since they were listed
                    return Written(self._path(numbers[-1]).read_bytes(), str(numbers[-1]))
            return None

    def write(self, content: bytes, tag: str | None) -> str | None:
        """Take the next number."""
        number = int(tag or 0) + 1
        with _explained(self._shown):
            self._shown.parent.mkdir(exist_ok=True)
            if not _create(self._path(number), content):
                return None
            if self._numbers()[-1] != number:  # others came and went since `tag`
                self._path(number).unlink(missing_ok=True)
                return None
            for older in self._numbers()[:-1]:
                self._path(older).unlink(missing_ok=True)
            self._show(content)
        return str(number)

    def hide(self) -> None:
        """Remove the copy for readers."""
        with suppress(OSError):
            self._shown.unlink(missing_ok=True)

    def _show(self, content: bytes) -> None:
        with suppress(OSError):  # for readers alone; the lease is held without it
            temporary = self._shown.with_name(f"{self._prefix}shown")
            temporary.write_bytes(content)
            temporary.replace(self._shown)

    def _path(self, number: int) -> Path:
        return self._shown.with_name(f"{self._prefix}{number}")

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._shown.parent)
        except FileNotFoundError:
            return []
        ends = (name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix))
        return sorted(int(end) for end in ends if end.isdigit())


class StoreLeaseFile:
    """A lease as an object of a store. It stays when it was given back: the store has no removal on condition."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store, self._name = store, name

    def __str__(self) -> str:
        return f"{self._store.url}: {self._name}"

    @property
    def unconditional(self) -> str | None:
        """Why writings are not conditional here."""
        return self._store.unconditional

    def read(self) -> Written | None:
        """What it holds."""
        try:
            content, stored = self._store.read(self._name)
        except FileNotFoundError:
            return None
        return Written(content, _tag(stored))

    def write(self, content: bytes, tag: str | None) -> str | None:
        """Write on condition."""
        known = None if tag is None else Stored(0, *json.loads(tag))
        stored = self._store.write_if(self._name, content, known)
        return None if stored is None else _tag(stored)

    def hide(self) -> None:
        """Readers see in it that it was given back."""


def _create(path: Path, content: bytes) -> bool:
    """Make a file of this content in one step, unless there is one of its name; whether it was made."""
    temporary = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # Over NFS the answer to a link that was made may get lost, and the repeated request fails.
            return temporary.stat().st_nlink == 2
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_without_link(path, content)
        return True
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _create_without_link(path: Path, content: bytes) -> bool:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(file, content)
    finally:
        os.close(file)
    return True


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Let errors of the file system out as what they mean for a storage."""
    try:
        yield
    except OSError as error:
        raise storage_trouble(error, path) or StorageError(f"{path}: {error}") from error


def _tag(stored: Stored) -> str:
    return json.dumps([stored.tag, stored.version])
