"""What a working copy and its store had in common when they last met, so that only what changed since is copied.

A small file in each folder of the working copy, ``.stamps.json``. It is a memory that may be lost: then the store
counts.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cryobench.conf.errors import CryobenchError
from cryobench.workers.record.files import read_record
from cryobench.workers.record.object_store import Stored

_NAME, _FORMAT = ".stamps.json", 1


@dataclass(frozen=True)
class Stamp:
    """What the store said of a file, and the file's `size_and_change` here, when they were one."""

    stored: Stored
    here: tuple[int, int]


class Stamps:
    """The stamps of the files of one folder of the working copy, by name.

    ``fresh`` tells that there were none yet: the folder was made by an earlier release, or never met its store.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._stamps: dict[str, Stamp] = {}
        self.fresh = self._changed = True
        try:
            plain = read_record(self._path, _FORMAT, {})["files"]
            self._stamps = {
                str(name): Stamp(Stored(int(size), str(tag), version), (int(size), int(changed)))
                for name, (tag, version, size, changed) in plain.items()
            }
            self.fresh = self._changed = False
        except (FileNotFoundError, CryobenchError, ValueError, TypeError, KeyError, AttributeError):
            pass

    def stored(self, name: str) -> Stored | None:
        """What the store said of the file when they were one."""
        stamp = self._stamps.get(name)
        return stamp.stored if stamp else None

    def same_in_store(self, name: str, stored: Stored) -> bool:
        """Whether the store holds what it held then."""
        known = self.stored(name)
        return known is not None and known.tag == stored.tag

    def same_here(self, name: str) -> bool:
        """Whether the file stands here as it did then."""
        stamp = self._stamps.get(name)
        return stamp is not None and size_and_change(self._path.with_name(name)) == stamp.here

    def names(self) -> set[str]:
        """All files that were one with the store's."""
        return set(self._stamps)

    def note(self, name: str, stored: Stored, here: tuple[int, int]) -> None:
        """They are one now."""
        self._stamps[name] = Stamp(stored, here)
        self._changed = True

    def forget(self, name: str) -> None:
        """There is no such file any more."""
        self._changed |= self._stamps.pop(name, None) is not None

    def save(self) -> None:
        """Remember for the next process. Not synced to the disk: what is lost is only compared again."""
        if not self._changed:
            return
        files = {n: [s.stored.tag, s.stored.version, *s.here] for n, s in self._stamps.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{_NAME}.{os.getpid()}")
        temporary.write_text(json.dumps({"format": _FORMAT, "files": files}))
        temporary.replace(self._path)
        self._changed = self.fresh = False


def size_and_change(path: Path) -> tuple[int, int] | None:
    """A file's size in bytes and time of change in nanoseconds since 1970; None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


def leave_stamps(folder: Path, successor: Path) -> None:
    """Let a folder that goes on under another name leave its stamps to what takes its old one."""
    if (folder / _NAME).exists():
        (folder / _NAME).rename(successor / _NAME)
