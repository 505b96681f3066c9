"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryobench.conf.errors import RecordError, disk_full

#: Of the threads of a process one appends at a time: another's half of a line would pass for a torn one.
_APPENDING = threading.Lock()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, sync it and give it the name ``path`` in one step.

    Raises:
        DiskFullError: no space left; what stood under ``path`` still stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_full(error, path) or error from error


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
    except (ValueError, OSError) as error:
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
    for number in range(found, current):
        plain = migrations[number](plain)
    return plain


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line; a torn line of a killed writer is ended first, so that it spoils no other.

    Threads may append to one file at once; of processes, only the one that holds the folder does.
    """
    line = json.dumps(value, allow_nan=False)
    try:
        with _APPENDING, path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_full(error, path) or error from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a file; torn ones are left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(errors="replace").split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
