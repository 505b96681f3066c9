"""Reconciling beside a running sweep, in a thread, so that the sweep never waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from cryobench.orchestrator.results.reconcile import Reconciler
from cryobench.orchestrator.sweep_record import SweepRecord
from cryobench.workers.record.mirror import Mirror

#: All trials of the sweep are looked at this often, whether or not anything was heard of them.
_FULL_PASS_S = 60.0
#: The compacted leaderboard is at most this old while rows come in.
_COMPACT_S = 20.0
#: How long the end waits for results that workers spoke of.
_PATIENCE_S = 15.0


class BackgroundReconciler:
    """Passes every few seconds over the trials with news and those that have not ended, and now and then over all.

    A tracking server that goes away is reported once; its trials are tried again, at the latest by the final pass.
    Leaderboard rows are written all the same.

    Raises:
        TrackingError: from the constructor, if MLflow cannot be reached.
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
        self._record, self._warn, self._interval, self._mirror = record, warn, interval_s, mirror
        self._storage = storage
        self._reconciler = Reconciler(storage, uri, warn, mirror)
        self._reconciler.read_sweeps()
        self._reconciler.tracker(record.name)
        self._news: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._warned: set[str] = set()
        self._compacted = self._full = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="reconcile", daemon=True)
        self._thread.start()

    def follow(self, record: SweepRecord) -> None:
        """The sweep lists more trials than before."""
        self._record = record

    def note(self, trials: Iterable[str]) -> None:
        """These trials have news."""
        with self._lock:
            self._news.update(trials)

    def close(self, ended: Collection[str] = ()) -> bool:
        """The final pass over all trials and the compacted leaderboard; whether MLflow has everything.

        ``ended`` are trials whose workers said so: their results are waited for a little, since a shared file system
        may show them later than the message came.
        """
        self._stop.set()
        self._thread.join()
        try:
            return self._close(ended)
        except Exception as error:  # it must not hide how the sweep itself ended
            self._warn(f"The leaderboard and MLflow could not be finished ({type(error).__name__}: {error}).")
            return False

    def _close(self, ended: Collection[str]) -> bool:
        self._reconciler.read_sweeps()  # another driver may have listed some of these trials meanwhile
        self._pass(self._record.trials)
        deadline = time.monotonic() + _PATIENCE_S
        while (late := self._not_ended(ended)) and time.monotonic() < deadline:
            time.sleep(0.5)
            self._pass(late)
        if self._mirror:
            self._mirror.pull_projections(self._storage)
        self._reconciler.compact()
        self._reconciler.finish(self._record.name, self._record.trials)
        if self._mirror:
            self._mirror.push_projections(self._storage)
        self._complain()
        return self._reconciler.unreachable is None and self._reconciler.problems.keys() <= self._reconciler.damaged

    def _not_ended(self, trials: Iterable[str]) -> list[str]:
        return [trial for trial in trials if self._reconciler.status(trial) in ("pending", "begun")]

    def _loop(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._tick()
            except Exception as error:  # a thread that died would lose all that follows without a word
                self._warn_once(f"Reconciling failed and is tried again ({type(error).__name__}: {error}).")

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._full >= _FULL_PASS_S:
            self._full = now
            self.note(self._record.trials)
        with self._lock:
            news, self._news = self._news, set()
        try:
            self._pass(news)
        except BaseException:
            self.note(news)
            raise
        if self._reconciler.rows_changed and now - self._compacted >= _COMPACT_S:
            self._compacted = now
            if self._mirror:
                self._mirror.pull_projections(self._storage)  # rows of other sweeps' drivers
            self._reconciler.compact()
            if self._mirror:
                self._mirror.push_projections(self._storage)

    def _pass(self, trials: Iterable[str]) -> None:
        self.note(self._reconciler.reconcile(sorted(trials), live=self._record.name))
        self._complain()

    def _complain(self) -> None:
        if self._reconciler.unreachable is not None:
            self._warn_once(self._reconciler.unreachable, "unreachable")

    def _warn_once(self, text: str, topic: str = "") -> None:
        if (topic or text) not in self._warned:
            self._warned.add(topic or text)
            self._warn(text)
