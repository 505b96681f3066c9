"""Writing files so that a reader never sees half of one, and only by who may.

What is written into a folder with a fence (`fenced`) asks it first, in whatever thread, and asks it whether to try
again when the storage is full, read-only or away.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError

from cryobench.conf.errors import CryobenchError, RecordError, storage_trouble

T = TypeVar("T")


class Fence(Protocol):
    """Stands before a folder while one process runs the trial in it."""

    def require(self) -> None:
        """Come back if this process may write; raises LeaseLostError where it may not."""

    def waits_for_storage(self, error: CryobenchError) -> bool:
        """Wait a while after ``error``; whether to try again."""

    def storage_is_back(self) -> None:
        """Trying again went well."""


#: By folder and not handed from call to call: a trial's files are written from several modules and threads, and none
#: of them may be the one that forgets to ask.
_fences: dict[Path, Fence] = {}


@contextmanager
def fenced(folder: Path, fence: Fence) -> Iterator[None]:
    """Let ``fence`` stand before everything that this process writes into ``folder``."""
    before = _fences.get(folder)
    _fences[folder] = fence
    try:
        yield
    finally:
        if before is None:
            del _fences[folder]
        else:
            _fences[folder] = before


#: Of the threads of a process one appends at a time: another's half of a line would pass for a torn one.
_APPENDING = threading.Lock()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, sync it and give it the name ``path`` in one step.

    Raises:
        DiskFullError: no space left; what stood under ``path`` still stands.
        StorageError: its folder is read-only or not there; likewise.
        LeaseLostError: another process runs the trial of this folder.
    """

    def whole() -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            _write(write, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    _behind_fence(path, whole)


def _write(write: Callable[[Path], object], path: Path) -> None:
    try:
        write(path)
    except SafetensorError as error:  # in which the system's own error is a word among others
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def plain_file_mode() -> int:
    """The mode of a file that is made as ordinary ones are, by the umask."""
    try:  # asking the system sets it for a moment, in all threads
        found = re.search(r"^Umask:\s*([0-7]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return 0o666 & ~int(found[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text))


def read_record(path: Path, current: int, migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]) -> Any:
    """The plain data of a versioned JSON file, brought to format ``current``.

    Args:
        path: the file; its ``format`` is 1 where it has none, as release 0.1 wrote it.
        current: the format that this release writes.
        migrations: for each earlier format, what makes the next one of its data.

    Returns:
        The file's object without its ``format``.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: it is no JSON object, or was written by a later release.
    """
    try:
        plain = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise RecordError(f"{path} is damaged: it is not whole JSON ({error}).") from error
    if not isinstance(plain, dict):
        raise RecordError(f"{path} is damaged: it holds {type(plain).__name__}, expected an object.")
    found = plain.pop("format", 1)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise RecordError(f"{path} is damaged: it has format {found!r}, expected a number from 1 to {current}.")
    if found > current:
        raise RecordError(
            f"{path} has format {found}, this release reads up to {current}: it was written by a later cryobench. "
            "Update cryobench where you run this command; nothing was changed."
        )
    try:
        for number in range(found, current):
            plain = migrations[number](plain)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise RecordError(f"{path} is damaged: it lacks what format {found} has ({error}).") from error
    return plain


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line; a torn line of a killed writer is ended first, so that it spoils no other.

    Threads may append to one file at once; of processes, only the one that holds the folder does.

    Raises:
        DiskFullError, StorageError, LeaseLostError: as `write_whole`.
    """
    line = json.dumps(value, allow_nan=False)

    def append() -> None:
        with _APPENDING, path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    _behind_fence(path, append)


def _behind_fence(path: Path, action: Callable[[], T]) -> T:
    fence, waited = _fences.get(path.parent), False
    while True:
        if fence is not None:
            fence.require()
        try:
            done = action()
        except IsADirectoryError as error:
            raise RecordError(f"{path} is a folder, where a file is expected. Remove it.") from error
        except OSError as error:
            explained = storage_trouble(error, path)
            if explained is None:
                raise
            if fence is None or not fence.waits_for_storage(explained):
                raise explained from error
            waited = True
        else:
            if fence is not None and waited:
                fence.storage_is_back()
            return done


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is one of a file in its folder: it leads nowhere else, and a file system has room for it."""
    return (
        0 < len(name.encode("utf-8", "surrogatepass")) <= 200
        and name not in (".", "..")
        and not {"/", "\\", "\0"} & set(name)
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a file; torn ones are left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(errors="replace").split("\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
