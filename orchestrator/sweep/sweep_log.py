"""What a sweep's driver saw, as JSON lines: ``<storage>/sweeps/logs/<sweep>/driver-<start>-<host>-<pid>.<part>.jsonl``.

For people and programs; nothing here reads it back to decide anything. Every line has ``format``, ``time`` (seconds
since 1970), ``level`` and ``event``, and where it concerns them ``trial`` and ``node``; the rest belongs to the event.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cryobench.orchestrator.formatting import masked
from cryobench.workers.record.files import read_lines

LOG_FORMAT = 1
#: A part is not written any more once it is so long: what goes to an object store is whole files.
_PART_BYTES = 2 << 20

Level = Literal["info", "warning", "error"]


class SweepLog:
    """The log of one driver. It never fails the sweep: lines that cannot be written are counted, and the next one that
    can be says how many were lost.

    Args:
        storage: the storage, or its working copy.
        sweep: the sweep's name.
        secret: a URI whose password is masked wherever it stands.
    """

    def __init__(self, storage: Path, sweep: str, secret: str = "") -> None:
        self._secret, self._lost, self._part = secret, 0, 0
        host = re.sub(r"[^\w.-]", "_", platform.node())
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._stem = logs_folder(storage, sweep) / f"driver-{started}-{host}-{os.getpid()}"
        self._lock = threading.Lock()

    def write(
        self, event: str, *, level: Level = "info", trial: str | None = None, node: str | None = None, **details: Any
    ) -> None:
        """One line; ``details`` are plain values, None is left out."""
        line = {"format": LOG_FORMAT, "time": time.time(), "level": level, "event": event}
        line |= {
            key: masked(value, self._secret) if isinstance(value, str) else value
            for key, value in {"trial": trial, "node": node, **details}.items()
            if value is not None
        }
        with self._lock:
            if self._lost:
                line["lines_lost"] = self._lost
            try:
                self._append(json.dumps(line, default=str) + "\n")
                self._lost = 0
            except (OSError, ValueError):
                self._lost += 1

    def _append(self, text: str) -> None:
        path = self._stem.with_name(f"{self._stem.name}.{self._part}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:  # opened anew each time: a storage may have been away
            file.write(text)
            if file.tell() > _PART_BYTES:
                self._part += 1


def logs_folder(storage: Path, sweep: str) -> Path:
    """Where the logs of a sweep lie."""
    return storage / "sweeps" / "logs" / sweep


def lines_about(storage: Path, trial: str) -> Iterator[dict[str, Any]]:
    """What the drivers of all sweeps noted of one trial, file by file; lines of later releases as they are."""
    for path in sorted((storage / "sweeps" / "logs").glob("*/*.jsonl")):
        if trial in path.read_text(errors="replace"):
            yield from (line for line in read_lines(path) if line.get("trial") == trial)
