"""Brings MLflow and the leaderboard in step with the trial folders.

One idempotent pass over any set of trials, right whatever ran before, whoever runs it, and how often. Each trial is
handled by itself: what one of them raises is told once, with the trial, and the others go on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from cryobench.conf.errors import (
    ConfigError,
    CryobenchError,
    DiskFullError,
    RecordError,
    StorageError,
    TrackingError,
    storage_trouble,
)
from cryobench.orchestrator.results.leaderboard import (
    Compaction,
    has_row,
    leaderboard_row,
    recorded_run_id,
    remove_row,
    write_rows,
)
from cryobench.orchestrator.results.reading import TrialReading
from cryobench.orchestrator.results.run_book import has_book, remembered_run_ids
from cryobench.orchestrator.results.tracking import Tracker, mend_artifact_locations
from cryobench.orchestrator.results.tracking_errors import RefusedError
from cryobench.orchestrator.sweep_record import SweepRecord, all_sweeps
from cryobench.workers.record.folder import SPEC, TrialFolder, all_trials
from cryobench.workers.record.mirror import Mirror

#: Experiment and sweep of trials that were run by themselves.
SINGLE = "single"
#: The files whose change is news of a trial: times and sizes of them are compared between passes.
_NEWS = ("spec.json", "events.jsonl", "result.json")
#: Trials that are read and written together: their runs go to a database in one transaction.
_BATCH = 50
Signature = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class Synced:
    """What `sync` did; ``problems`` by trial, or by file where no trial is concerned."""

    sweeps: int
    trials: int
    rows: int
    removed_runs: int
    tracking_error: str | None
    problems: dict[str, str]


@dataclass
class Reconciler:
    """Passes over the trials of a storage, with a memory of what each already found in step.

    Args:
        storage: the storage, or its working copy.
        uri: MLflow's tracking URI; None leaves MLflow, and the run ids in the leaderboard, as they are.
        tell: is told each problem once.
        mirror: the object store that ``storage`` is a copy of; what is new there is brought before each pass.
        url: of that store, where all was brought already and none is given.
    """

    storage: Path
    uri: str | None
    tell: Callable[[str], None] = lambda text: None
    mirror: Mirror | None = None
    url: str | None = None
    rows_changed: bool = False
    problems: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    unreachable: str | None = None
    _sweeps_of: dict[str, list[str]] = field(default_factory=dict)
    _trackers: dict[str, Tracker] = field(default_factory=dict)
    _in_step: dict[str, tuple[Signature, str]] = field(default_factory=dict)
    _remembered: dict[str, dict[str, str]] = field(default_factory=dict)

    def read_sweeps(self) -> list[SweepRecord]:
        """Learn which sweeps list which trials, oldest first."""
        records = all_sweeps(self.storage, lambda error: self._note("sweeps", error))
        found: dict[str, list[str]] = {}
        for record in records:
            for trial in record.trials:
                found.setdefault(trial, []).append(record.name)
        self._sweeps_of = found
        return records

    def tracker(self, sweep: str) -> Tracker | None:
        """The experiment of a sweep; None without tracking.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        if self.uri is None:
            return None
        if sweep not in self._trackers:
            with self.lock:  # a new database, an experiment, a parent run are made by one process, not by two
                if not self._trackers:
                    mend_artifact_locations(self.storage, self.tell)
                url = self.mirror.url if self.mirror else self.url
                tracker = self._trackers[sweep] = Tracker(self.uri, self.storage, sweep, url)
                if tracker.experiment != sweep:
                    self.tell(
                        f"MLflow's experiment {sweep} belongs to another storage: this one's runs are in the "
                        f"experiment {tracker.experiment}."
                    )
        return self._trackers[sweep]

    def reconcile(
        self, trials: Iterable[str], *, live: str | None = None, done: Callable[[], None] = lambda: None
    ) -> set[str]:
        """One pass; the trials that have not ended or could not be written, which the next pass has to look at.

        Args:
            trials: their ids.
            live: the sweep whose experiment follows its trials epoch by epoch; in those of other sweeps a trial is
                written when it has ended. None writes all everywhere.
            done: called after each trial.
        """
        self.unreachable = None
        self._remembered.clear()
        left: set[str] = set()
        asked = list(trials)
        try:
            self._look_at_storage(asked)
        except StorageError as error:  # said once; all of them are looked at when it is back
            self.unreachable = str(error)
            return set(asked)
        with self.lock:  # of two drivers on one storage, one at a time: no run is made twice
            for start in range(0, len(asked), _BATCH):
                self._reconcile(asked[start : start + _BATCH], live, left)
                for _ in asked[start : start + _BATCH]:
                    done()
            for tracker in self._trackers.values():
                tracker.save()
        return left

    def status(self, trial: str) -> str:
        """How a trial stands, by its folder; one that was found in step is not read again."""
        known = self._in_step.get(trial)
        if known is not None and known[0] == _signature(self.storage, trial):
            return known[1]
        return TrialFolder(self.storage, trial).state().status

    def finish(self, sweep: str, trials: Iterable[str]) -> None:
        """Note the counts of a sweep on its parent run; without effect while MLflow cannot be reached."""
        if self.uri is None or self.unreachable is not None:
            return
        states = Counter(self.status(trial) for trial in trials)
        try:
            tracker = self.tracker(sweep)
            if tracker is not None:
                tracker.finish(states)
        except TrackingError as error:
            self.unreachable = str(error)

    def compact(self) -> pa.Table:
        """Gather the rows into one table; rows of trials whose folders are gone leave it."""
        self._look_at_storage([])
        self.rows_changed = False
        stored = self.mirror.trials() if self.mirror else None

        def exists(trial: str) -> bool:
            if stored is not None:  # of other sweeps' trials nothing is here
                return trial in stored
            return (TrialFolder(self.storage, trial).path / SPEC).exists()

        with self.lock:  # two at once: the older table would replace the newer
            return self._compaction.run(exists=exists, unreadable=self._note)

    def _look_at_storage(self, trials: list[str]) -> None:
        """See that the storage is there, before anything makes a folder in its place; bring what is new of trials."""
        if self.mirror:
            self.mirror.pull_trials(self.storage, trials)
        elif not (self.storage / "trials").is_dir():
            raise StorageError(
                f"Storage {self.storage} is not there: it holds no trials folder. Bring it back to its place, or mount "
                "it; MLflow and the leaderboard are brought up to date then, at the latest by cryobench sync."
            )

    def _reconcile(self, trials: list[str], live: str | None, left: set[str]) -> None:
        """Bring a batch of trials in step; into ``left`` goes what the next pass has to look at."""
        found: dict[str, tuple[TrialReading, Signature]] = {}
        for trial in trials:
            with self._handled(trial, left):
                news = self._news(trial, left)
                if news is not None:
                    found[trial] = news
        outcomes = self._project([reading for reading, _ in found.values()], live)
        rows: dict[str, dict[str, Any]] = {}
        for trial, (reading, _) in list(found.items()):
            with self._handled(trial, left):
                row = self._row(reading, outcomes[trial], live)
                if row is not None:
                    rows[trial] = row
                continue
            del found[trial]
        written = write_rows(self.storage, list(rows.values()))
        self.rows_changed |= any(outcome is True for outcome in written.values())
        for trial, (reading, signature) in found.items():
            with self._handled(trial, left):
                self._settle(reading, signature, [*outcomes[trial].values(), written.get(trial)])

    def _news(self, trial: str, left: set[str]) -> tuple[TrialReading, Signature] | None:
        """What there is to be written of a trial; None if nothing, or nothing yet."""
        signature = _signature(self.storage, trial)  # before reading: what is written meanwhile is news for the next
        if not any(signature):
            return None
        known = self._in_step.get(trial)
        reading = TrialReading(self.storage, trial)
        status = known[1] if known is not None and known[0] == signature else reading.state().status
        if status == "begun":
            left.add(trial)
        return None if status == "pending" or (known is not None and known[0] == signature) else (reading, signature)

    def _project(self, trials: list[TrialReading], live: str | None) -> dict[str, dict[str, str | Exception]]:
        """Write the runs of each trial in all experiments it belongs to now; by trial and sweep, what came of it."""
        found: dict[str, dict[str, str | Exception]] = {trial.trial_id: {} for trial in trials}
        by_sweep: dict[str, list[TrialReading]] = {}
        for trial in trials:
            for sweep in self._sweeps(trial.trial_id, live):
                if self.uri is not None and (sweep == live or live is None or trial.state().status != "begun"):
                    by_sweep.setdefault(sweep, []).append(trial)
        for sweep, members in by_sweep.items():
            try:
                if self.unreachable is not None:  # said once; the others of this pass need not wait for time-outs
                    raise TrackingError(self.unreachable)
                tracker = self.tracker(sweep)
                outcomes: dict[str, str | Exception] = tracker.project(members) if tracker is not None else {}
            except Exception as error:
                outcomes = dict.fromkeys((trial.trial_id for trial in members), error)
            for trial_id, outcome in outcomes.items():
                found[trial_id][sweep] = outcome
                if isinstance(outcome, TrackingError) and not isinstance(outcome, RefusedError):
                    self.unreachable = str(outcome)
        return found

    def _row(
        self, trial: TrialReading, outcomes: dict[str, str | Exception], live: str | None
    ) -> dict[str, Any] | None:
        """The trial's row, if it has ended; one that was stopped early loses what an earlier failure left it."""
        if trial.state().status == "begun":
            return None
        if trial.state().status == "pruned":
            self.rows_changed |= remove_row(self.storage, trial.trial_id, self.mirror)
            return None
        sweep = self._sweeps(trial.trial_id, live)[0]
        run_id = outcomes.get(sweep)
        if not isinstance(run_id, str):
            run_id = recorded_run_id(self.storage, trial.trial_id) or self._remembered_run_id(sweep, trial.trial_id)
        # A result that cannot be read, perhaps one of a later release, takes no row away that was read before.
        if trial.state().kind == RecordError.kind and has_row(self.storage, trial.trial_id):
            return None
        return leaderboard_row(trial, sweep, run_id)

    def _settle(self, trial: TrialReading, signature: Signature, outcomes: list[object]) -> None:
        """Remember a trial that is in step now, or raise what kept it from being."""
        trial.result()  # without tracking, nothing has said yet that it is damaged
        troubles = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if all(isinstance(trouble, RefusedError | RecordError) for trouble in troubles):
            self._in_step[trial.trial_id] = (signature, trial.state().status)
        if troubles:
            raise troubles[-1]
        self.problems.pop(trial.trial_id, None)
        self.damaged.discard(trial.trial_id)

    @contextmanager
    def _handled(self, trial: str, left: set[str]) -> Iterator[None]:
        """What is raised within is this trial's alone: it is told, and the others go on."""
        try:
            yield
        except (RefusedError, RecordError) as error:  # told once; nothing changes before the files do
            self._note(trial, error)
            if isinstance(error, RecordError):
                self.damaged.add(trial)
        except (TrackingError, StorageError, DiskFullError) as error:
            self.unreachable = str(error)
            left.add(trial)
        except Exception as error:
            away = None
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError):
                away = storage_trouble(error, self.storage)  # or the storage's, and said once
            if away is not None:
                self.unreachable = str(away)
            else:
                self._note(trial, error)
            left.add(trial)

    def _sweeps(self, trial: str, live: str | None) -> list[str]:
        return self._sweeps_of.get(trial) or [live or SINGLE]

    def _remembered_run_id(self, sweep: str, trial: str) -> str | None:
        if sweep not in self._remembered:
            self._remembered[sweep] = remembered_run_ids(self.storage, sweep)
        return self._remembered[sweep].get(trial)

    def _note(self, what: str, error: Exception) -> None:
        text = str(error) if isinstance(error, CryobenchError) else f"{type(error).__name__}: {error}"
        shown = text if what in text or what == "sweeps" else f"Trial {what}: {text}"
        if self.problems.get(what) != shown:
            self.problems[what] = shown
            self.tell(shown)

    @cached_property
    def _compaction(self) -> Compaction:
        return Compaction(self.storage)

    @cached_property
    def lock(self) -> FileLock:
        """Held by whoever writes MLflow or the leaderboard of this storage; may be taken again while it is held."""
        folder = self.storage / "leaderboard"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_trouble(error, self.storage) or error from error
        return FileLock(folder / ".reconcile.lock")


def sync(
    storage: Path,
    uri: str | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
    url: str | None = None,
) -> Synced:
    """Rebuild MLflow (unless ``uri`` is None) and the leaderboard from the trial folders.

    Runs of trials that are gone are deleted, and so is the second of two runs of one trial.
    """
    if not storage.is_dir():
        raise ConfigError(f"No storage at {storage}. Expected the folder of an earlier sweep; give it with --storage.")
    reconciler = Reconciler(storage, uri, tell, url=url)
    removed, problem = 0, None
    with reconciler.lock:  # what a driver begins meanwhile has its run only after this
        records = reconciler.read_sweeps()
        folders = [folder.trial_id for folder in all_trials(storage)]
        listed = {trial for record in records for trial in record.trials}
        grouped = {record.name: set(record.trials) for record in records}
        if (alone := set(folders) - listed) or has_book(storage, SINGLE):
            grouped[SINGLE] = alone
        try:
            for sweep, trials in grouped.items():
                tracker = reconciler.tracker(sweep)
                if tracker is not None:
                    removed += tracker.take_stock(trials & set(folders))
        except TrackingError as error:
            reconciler.uri, problem = None, str(error)  # the leaderboard is rebuilt all the same
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress(done, len(folders))

    reconciler.reconcile(folders, done=count)
    problem = problem or reconciler.unreachable
    for name, trials in grouped.items():
        reconciler.finish(name, trials)
    rows = reconciler.compact().num_rows
    return Synced(len(grouped), len(folders), rows, removed, problem, reconciler.problems)


def _signature(storage: Path, trial: str) -> Signature:
    folder = f"{storage}/trials/{trial}"
    found: list[tuple[int, int] | None] = []
    for name in _NEWS:
        try:
            stat = os.stat(f"{folder}/{name}")
            found.append((stat.st_size, stat.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return tuple(found)
