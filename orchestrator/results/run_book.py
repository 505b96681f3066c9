"""Which MLflow run a trial of a sweep has, and how far it is written: ``sweeps/runs/<sweep>.json``.

A memory only. It spares a start to read all runs of an experiment (7 s per 1,000 of them); without it, or with a
server that was set up anew, runs are looked up by their trial's tag.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cryobench.conf.errors import RecordError
from cryobench.workers.record.files import read_record, write_json

BOOK_FORMAT = 1


@dataclass(frozen=True)
class TrackedRun:
    """A trial's run: the last epoch written, the digest of the result that was, the status shown, and how many load
    samples were written.
    """

    run_id: str
    epoch: int = 0
    written: str = ""
    status: str = ""
    loads: int = 0

    def with_epoch(self, epoch: int) -> TrackedRun:
        """The run after more epochs."""
        return replace(self, epoch=epoch)

    def with_loads(self, loads: int) -> TrackedRun:
        """The run after more load samples."""
        return replace(self, loads=loads)

    def with_result(self, written: str) -> TrackedRun:
        """The run with its result."""
        return replace(self, written=written)

    def with_status(self, status: str) -> TrackedRun:
        """The run with what it shows of the trial's state."""
        return replace(self, status=status)


@dataclass
class RunBook:
    """The runs of one experiment on one server.

    ``key`` tells servers and experiments apart, also one that was deleted and made again under the same name; no part
    of the server's address can be read from it.
    """

    path: Path
    key: str
    _parent: str | None = None
    _runs: dict[str, TrackedRun] = field(default_factory=dict)
    _changed: bool = False

    @classmethod
    def open(cls, storage: Path, sweep: str, uri: str, experiment: str, created: int | None) -> RunBook:
        """The book of a sweep; an empty one if it is of another server, damaged, or of a later release."""
        path = storage / "sweeps" / "runs" / f"{sweep}.json"
        key = hashlib.sha256(json.dumps([uri, experiment, created]).encode()).hexdigest()
        book = cls(path, key)
        try:
            plain: dict[str, Any] = read_record(path, BOOK_FORMAT, {})
            if plain["key"] == key:
                book._parent = str(plain["parent"]) if plain["parent"] else None
                book._runs = {trial: TrackedRun(**run) for trial, run in plain["runs"].items()}
        except (FileNotFoundError, RecordError, KeyError, TypeError, AttributeError):
            return cls(path, key)
        return book

    @property
    def parent(self) -> str | None:
        """The sweep's own run, if it is known."""
        return self._parent

    @parent.setter
    def parent(self, run_id: str) -> None:
        self._changed |= self._parent != run_id
        self._parent = run_id

    def get(self, trial: str) -> TrackedRun | None:
        """The trial's run, if it is known."""
        return self._runs.get(trial)

    def put(self, trial: str, run: TrackedRun) -> None:
        """Remember a trial's run."""
        self._changed |= self._runs.get(trial) != run
        self._runs[trial] = run

    def forget(self, trial: str) -> None:
        """Forget a run that is no more."""
        self._changed |= self._runs.pop(trial, None) is not None

    def clear(self) -> None:
        """Forget all runs but the parent."""
        self._changed |= bool(self._runs)
        self._runs.clear()

    def save(self) -> None:
        """Write the book if anything in it changed."""
        if self._changed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            runs = {trial: asdict(run) for trial, run in self._runs.items()}
            write_json(self.path, {"format": BOOK_FORMAT, "key": self.key, "parent": self._parent, "runs": runs})
            self._changed = False


def has_book(storage: Path, sweep: str) -> bool:
    """Whether the sweep was ever tracked from this storage."""
    return (storage / "sweeps" / "runs" / f"{sweep}.json").exists()


def remembered_run_ids(storage: Path, sweep: str) -> dict[str, str]:
    """The runs that trials had when they were tracked last, on whatever server."""
    try:
        plain = read_record(storage / "sweeps" / "runs" / f"{sweep}.json", BOOK_FORMAT, {})
        return {str(trial): str(run["run_id"]) for trial, run in plain["runs"].items()}
    except (FileNotFoundError, RecordError, KeyError, TypeError, AttributeError):
        return {}
