"""Keeps MLflow and the leaderboard in step with the trial folders: live during a sweep, or all at once by `sync`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryobench.conf.errors import CryobenchError, StorageError, TrackingError
from cryobench.orchestrator.results.leaderboard import compact, leaderboard_row, write_row
from cryobench.orchestrator.results.tracking import Tracker
from cryobench.orchestrator.sweep_record import SweepRecord, all_sweeps
from cryobench.workers.record.folder import EVENTS, TrialFolder, all_trials
from cryobench.workers.record.mirror import Mirror

#: Experiment and sweep of trials that were run by themselves.
SINGLE = "single"


@dataclass(frozen=True)
class Synced:
    """What `sync` did."""

    sweeps: int
    trials: int
    rows: int
    tracking_error: str | None


def sync(storage: Path, uri: str | None, progress: Callable[[int, int], None] = lambda done, total: None) -> Synced:
    """Rebuild MLflow (unless ``uri`` is None) and the leaderboard from the trial folders."""
    records = all_sweeps(storage)
    folders = {folder.trial_id: folder for folder in all_trials(storage)}
    grouped = {record.name: [t for t in record.trials if t in folders] for record in records}
    known = {trial for trials in grouped.values() for trial in trials}
    alone = [trial for trial in folders if trial not in known]
    if alone:
        grouped[SINGLE] = alone
    total, done, problem = sum(map(len, grouped.values())), 0, None
    ended: set[str] = set()
    for name, trials in grouped.items():
        tracker = None
        if uri is not None and problem is None:
            try:
                tracker = Tracker(uri, storage, name)
            except TrackingError as error:
                problem = str(error)
        for trial in trials:
            run_id = None
            if tracker is not None and problem is None:
                try:
                    run_id = tracker.project(folders[trial])
                except TrackingError as error:
                    problem = str(error)
            if trial not in ended:
                row = leaderboard_row(folders[trial], name, run_id)
                if row is not None:
                    write_row(storage, row)
                    ended.add(trial)
            done += 1
            progress(done, total)
        if tracker is not None and problem is None:
            tracker.finish(Counter(str(folders[trial].state().status) for trial in trials))
    table = compact(storage, keep=ended)
    return Synced(len(grouped), total, table.num_rows, problem)


class LiveProjection:
    """Projects trials with news every few seconds in a thread of the driver, so that the sweep never waits for it.

    A tracking server that goes away is reported once; its trials stay noted and are tried again, at the latest by
    the final flush. Leaderboard rows are written all the same.
    """

    def __init__(
        self,
        storage: Path,
        record: SweepRecord,
        uri: str | None,
        warn: Callable[[str], None],
        *,
        interval_s: float = 4.0,
        mirror: Mirror | None = None,
    ) -> None:
        self._storage, self._record, self._warn, self._interval = storage, record, warn, interval_s
        self._mirror = mirror
        self._tracker = Tracker(uri, storage, record.name) if uri else None
        self._owner: dict[str, str] = {}
        for other in all_sweeps(storage):
            for trial in other.trials:
                self._owner.setdefault(trial, other.name)
        self._news: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._loop, name="projection", daemon=True)
        self._thread.start()

    def note(self, trials: Iterable[str]) -> None:
        """These trials have news."""
        with self._lock:
            self._news.update(trials)

    def close(self) -> bool:
        """Write what is left and the compacted leaderboard; whether MLflow has everything."""
        self._stop.set()
        self._thread.join()
        complete = self._flush()
        compact(self._storage)
        if self._mirror:
            self._mirror.push_projections(self._storage)
        if self._tracker is not None and complete:
            states = Counter(str(TrialFolder(self._storage, trial).state().status) for trial in self._record.trials)
            try:
                self._tracker.finish(states)
            except TrackingError as error:
                self._complain(error)
                complete = False
        return complete

    def failed(self, trial: str, message: str) -> str:
        """Record that a trial's workers died too often, unless they could say more themselves; what is known then."""
        if self._mirror:
            self._mirror.pull_trial(self._storage, trial, whole=False)
        folder = TrialFolder(self._storage, trial)
        state = folder.state()
        if state.status != "failed":
            folder.record("failed", kind="crashed", message=message)
            if self._mirror:
                self._mirror.push(self._storage, (folder.path / EVENTS).relative_to(self._storage).as_posix())
        self.note([trial])
        return state.message or message

    def _loop(self) -> None:
        while not self._stop.wait(self._interval):
            self._flush()

    def _flush(self) -> bool:
        with self._lock:
            news, self._news = sorted(self._news), set()
        missed: set[str] = set()
        for trial in news:
            folder, run_id = TrialFolder(self._storage, trial), None
            try:
                if self._mirror:
                    self._mirror.pull_trial(self._storage, trial, whole=False)
                if self._tracker is not None and missed:
                    missed.add(trial)  # after one that could not be written, the others wait for the next flush
                elif self._tracker is not None:
                    run_id = self._tracker.project(folder)
            except (TrackingError, StorageError) as error:
                self._complain(error)
                missed.add(trial)
            owner = self._owner.get(trial, self._record.name)
            if owner == self._record.name:
                row = leaderboard_row(folder, owner, run_id)
                if row is not None:
                    write_row(self._storage, row)
        self.note(missed)
        return not missed

    def _complain(self, error: CryobenchError) -> None:
        if not self._warned:
            self._warned = True
            self._warn(str(error))
