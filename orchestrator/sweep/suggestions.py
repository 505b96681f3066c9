"""The learning rates that were suggested for a sweep: ``sweeps/suggestions/<name>.json``.

A rate is written here before its trial is handed out, so that whoever goes on with the sweep finds it: it is part of
the plan from then on, and of what may be suggested in all. Only the sweep's driver writes.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cryobench.conf.errors import RecordError
from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.files import read_record, write_json

SUGGESTIONS_FORMAT = 1


@dataclass(frozen=True)
class Suggestion:
    """A rate for a cell, with the trial that it makes; ``rivals`` is `TrialSpec.rivals_id`, ``label`` for people."""

    rivals: str
    lr: float
    trial_id: str
    label: str
    time: float


@dataclass(frozen=True)
class SearchCell:
    """An encoder on a data set in a regime, whose rate is searched.

    ``template`` is a trial of it at some rate, ``suggested`` are the rates that were suggested so far, in order.
    ``blocked``: something has to be brought before its trials can run.
    """

    template: TrialSpec
    suggested: tuple[float, ...]
    blocked: bool

    def left(self, samples: int) -> int:
        """How many of ``samples`` rates are still to be suggested."""
        return 0 if self.blocked else max(0, samples - len(self.suggested))


def read_suggestions(storage: Path, sweep: str) -> list[Suggestion]:
    """All rates that were suggested for a sweep, in order; none where it never asked for any.

    Raises:
        RecordError: the file is damaged, or was written by a later release.
    """
    return _read(storage, sweep)[0]


def left_to_suggest(storage: Path, sweep: str) -> int:
    """How many more rates its driver meant to suggest when it last wrote.

    Raises:
        RecordError: the file is damaged, or was written by a later release.
    """
    return _read(storage, sweep)[1]


def record_suggestion(storage: Path, sweep: str, spec: TrialSpec, left: int) -> None:
    """Write down that ``spec`` was suggested for a sweep, whole or not at all; once, however often it is called.

    Raises:
        RecordError: what is there is damaged, or was written by a later release.
        DiskFullError, StorageError: the storage cannot be written.
    """
    found, _ = _read(storage, sweep)
    if spec.trial_id not in {one.trial_id for one in found}:
        found.append(Suggestion(spec.rivals_id, spec.lr, spec.trial_id, spec.label, time.time()))
    _write(storage, sweep, found, left)


def record_left(storage: Path, sweep: str, left: int) -> None:
    """Write down how many rates are still to be suggested.

    Raises:
        RecordError, DiskFullError, StorageError: as `record_suggestion`.
    """
    found, before = _read(storage, sweep)
    if left != before:
        _write(storage, sweep, found, left)


def _read(storage: Path, sweep: str) -> tuple[list[Suggestion], int]:
    path = _path(storage, sweep)
    try:
        plain = read_record(path, SUGGESTIONS_FORMAT, {})
        return [Suggestion(**one) for one in plain["suggestions"]], int(plain["left"])
    except FileNotFoundError:
        return [], 0
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(
            f"{path} is damaged ({type(error).__name__}: {error}). Bring it back from a copy of the storage, or remove "
            "it: the sweep then suggests all its rates anew, and keeps what was trained at others."
        ) from error


def _write(storage: Path, sweep: str, suggestions: list[Suggestion], left: int) -> None:
    path = _path(storage, sweep)
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [asdict(one) for one in suggestions]
    write_json(path, {"format": SUGGESTIONS_FORMAT, "name": sweep, "left": left, "suggestions": listed})


def _path(storage: Path, sweep: str) -> Path:
    return storage / "sweeps" / "suggestions" / f"{sweep}.json"
