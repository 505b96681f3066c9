"""A trial's folder: the truth about it.

``spec.json``; ``events.jsonl``, appended; the latest and the best checkpoint; ``test_confusion.npy``, per tile;
pictures; ``stacks.txt`` after a read that hung; ``lease.json`` while a process runs it; ``result.json``, written last:
a trial is complete when it exists.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cryobench.conf.errors import RETRIED_KINDS, ConfigError, RecordError, storage_trouble
from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.events import AttemptStarted, EpochFinished, Event, Failed, StoppedEarly, event_of
from cryobench.workers.record.files import append_line, is_plain_name, read_lines, read_record, write_json
from cryobench.workers.record.lease import LEASE
from cryobench.workers.record.lease_files import FolderLeaseFile
from cryobench.workers.record.result import RESULT_FORMAT, RESULT_MIGRATIONS, TrialResult

SPEC, EVENTS, RESULT = "spec.json", "events.jsonl", "result.json"
#: What is left in a folder whose trial bears another name since: the way there.
MOVED, MOVED_FORMAT = "moved.json", 1
#: The format of ``spec.json``, and what brings earlier ones to it: 2 has the number itself in the file.
SPEC_FORMAT = 2
SPEC_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda plain: plain}
STACKS = "stacks.txt"
CONFUSION, SAMPLES_PICTURE, CONFUSION_PICTURE = "test_confusion.npy", "samples.png", "confusion.png"


@dataclass(frozen=True)
class TrialState:
    """Where a trial stands: how it ended, or how far it came.

    A ``pruned`` one was stopped early; it has no result and can go on.
    """

    status: Literal["pending", "begun", "pruned", "failed", "diverged", "completed"]
    epoch: int = 0
    kind: str | None = None
    message: str | None = None

    @property
    def finished(self) -> bool:
        """Whether there is a result; such a trial is never run again."""
        return self.status in ("completed", "diverged")

    @property
    def waits_for_user(self) -> bool:
        """Whether it failed for a reason that another attempt alone would not remove."""
        return self.status == "failed" and self.kind not in RETRIED_KINDS


class TrialFolder:
    """Access to one trial's folder below a storage folder."""

    def __init__(self, storage: Path, trial_id: str) -> None:
        if not is_plain_name(trial_id):
            raise ConfigError(f"{trial_id[:100]!r} is no trial's id. cryobench plan lists trials.")
        self.trial_id = trial_id
        self.path = storage / "trials" / trial_id

    @classmethod
    def find(cls, storage: Path, trial_id: str) -> TrialFolder:
        """The trial's folder, also by a name that an earlier release gave it."""
        mine = cls(storage, trial_id)
        return cls(storage, read_moved(mine.path) or trial_id)

    @classmethod
    def at(cls, path: Path) -> TrialFolder:
        """The trial whose folder is ``path``, wherever it lies."""
        folder = cls(path.parent, path.name)
        folder.path = path
        return folder

    def lease_file(self) -> FolderLeaseFile:
        """Where it stands who runs the trial, if its storage is a folder.

        Raises:
            StorageError: the storage cannot be used.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_trouble(error, self.path) or error from error
        return FolderLeaseFile(self.path / LEASE)

    def write_spec(self, spec: TrialSpec) -> None:
        """Write ``spec.json`` once; a folder never changes its trial."""
        path = self.path / SPEC
        if not path.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(path, {"format": SPEC_FORMAT, **spec.model_dump(mode="json")})

    def spec(self) -> TrialSpec:
        """The trial of this folder.

        Raises:
            ConfigError: there is no such trial.
            RecordError: its file is damaged, or was written by a later release.
        """
        return read_spec(self.path / SPEC)

    def record(self, event: Event) -> Event:
        """Append one event; returned is what was written, with its time."""
        recorded = event.model_copy(update={"time": time.time()})
        append_line(self.path / EVENTS, recorded.plain())
        return recorded

    def events(self) -> list[Event]:
        """All whole events, in order."""
        return [event_of(line) for line in read_lines(self.path / EVENTS)]

    def epochs(self) -> list[EpochFinished]:
        """One event an epoch, in order; of an epoch that was repeated after an interruption, the last one."""
        found = {event.epoch: event for event in self.events() if isinstance(event, EpochFinished)}
        return [found[epoch] for epoch in sorted(found)]

    def write_result(self, result: TrialResult) -> None:
        """Write ``result.json``: from now on the trial is complete."""
        write_json(self.path / RESULT, {"format": RESULT_FORMAT, **result.model_dump(mode="json")})

    def result(self) -> TrialResult | None:
        """The result, or None while the trial is not complete.

        Raises:
            RecordError: the file is damaged, or was written by a later release.
        """
        try:
            return TrialResult.model_validate(self._plain_result())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise RecordError(
                f"{self.path / RESULT} is not a whole result ({field}: {problem['msg']}). {self._instead_of_result()}"
            ) from error

    def _plain_result(self) -> dict[str, Any]:
        try:
            plain: dict[str, Any] = read_record(self.path / RESULT, RESULT_FORMAT, RESULT_MIGRATIONS)
        except RecordError as error:
            if "later cryobench" in str(error):
                raise
            raise RecordError(f"{error} {self._instead_of_result()}") from error
        return plain

    def _instead_of_result(self) -> str:
        return (
            "Bring the file back from a copy of the storage; or remove it and run the sweep again, which runs this "
            "trial anew. All other trials are unaffected."
        )

    def state(self) -> TrialState:
        """Where the trial stands, from its files alone.

        Of the result only what this needs is looked at, so that a file that lacks anything else is one row's problem.
        A file that does not even say how the trial ended makes it ``failed`` with the kind ``bad_record``.
        """
        try:
            plain = self._plain_result()
            status, epochs = plain.get("status"), plain.get("epochs", 0)
            if status in ("completed", "diverged") and isinstance(epochs, int):
                return TrialState(status, epochs)
            problem = f"{self.path / RESULT} does not say how the trial ended. {self._instead_of_result()}"
            return TrialState("failed", 0, RecordError.kind, problem)
        except FileNotFoundError:
            pass
        except RecordError as error:
            return TrialState("failed", 0, error.kind, str(error))
        events = self.events()
        epoch = max((event.epoch for event in events if isinstance(event, EpochFinished)), default=0)
        if not events:
            return TrialState("pending")
        turns = (event for event in reversed(events) if isinstance(event, Failed | StoppedEarly | AttemptStarted))
        last = next(turns, None)
        if isinstance(last, Failed):
            return TrialState("failed", epoch, last.kind, last.message)
        if isinstance(last, StoppedEarly):
            return TrialState("pruned", epoch, message=last.message)
        return TrialState("begun", epoch)


def read_spec(path: Path) -> TrialSpec:
    """A trial's spec from its file.

    Raises:
        ConfigError: there is no such file.
        RecordError: it is damaged, or was written by a later release.
    """
    try:
        return TrialSpec.model_validate(read_record(path, SPEC_FORMAT, SPEC_MIGRATIONS))
    except FileNotFoundError:
        moved = read_moved(path.parent)
        if moved is not None:
            return read_spec(path.parent.with_name(moved) / path.name)
        raise ConfigError(
            f"No trial at {path.parent}. Expected a folder with {SPEC}; cryobench plan lists trials."
        ) from None
    except ValidationError as error:
        raise RecordError(
            f"{path} is not a whole spec ({str(error)[:300]}). Bring it back from a copy of the storage, or remove "
            f"{path.parent} and run the sweep again, which runs this trial anew."
        ) from error


def read_moved(path: Path) -> str | None:
    """The name that the trial of a folder bears now, if a release gave it another one."""
    try:
        name = str(read_record(path / MOVED, MOVED_FORMAT, {})["trial_id"])
        return name if is_plain_name(name) else None
    except (FileNotFoundError, KeyError, RecordError):
        return None


def all_trials(storage: Path) -> list[TrialFolder]:
    """The folders of all trials that were ever begun on a storage, by id."""
    return [TrialFolder(storage, path.parent.name) for path in sorted((storage / "trials").glob(f"*/{SPEC}"))]
