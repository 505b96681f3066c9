"""Digests of files from elsewhere: recorded on first use, compared ever after."""

from __future__ import annotations

import json
from pathlib import Path

from cryobench.conf.digests import file_sha256
from cryobench.conf.errors import CryobenchError
from cryobench.workers.record.files import write_json

RECORD = "sha256.json"


class DigestRecord:
    """The record of one folder, ``RECORD`` in it, with a memory of digests in the cache folder."""

    def __init__(self, folder: Path, cache_dir: Path) -> None:
        self.folder, self._memory = folder, cache_dir / "digests.json"
        self._known = _read(self._memory)

    def verified(self, file: str, published: str | None, wrong: type[CryobenchError]) -> str:
        """The SHA-256 of ``file``, equal to the published or recorded one, or recorded now if there is neither.

        Raises:
            CryobenchError: of type ``wrong``, if it is another file than was published or seen before.
        """
        path = self.folder / file
        found, record = self._digest(path), _read(self.folder / RECORD)
        expected = published or record.get(file)
        if expected is None:
            _write(self.folder / RECORD, record | {file: found})
        elif found != expected:
            whose = "published" if published else f"recorded in {self.folder / RECORD} on first use"
            raise wrong(
                f"{path} has SHA-256 {found[:16]}…, expected {expected[:16]}… ({whose}). It is damaged or another "
                "file: fetch it again; if you replaced it on purpose, remove its line from the record."
            )
        return found

    def _digest(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = file_sha256(path)
            _write(self._memory, self._known)
        return self._known[key]


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _write(path: Path, values: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)
