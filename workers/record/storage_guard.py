"""What stands between a running trial and its storage: its lease, and patience with a storage that is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryobench.conf.errors import CryobenchError, DiskFullError, StorageError
from cryobench.workers.record.events import (
    AttemptStarted,
    Event,
    Failed,
    Finished,
    Interrupted,
    Note,
    Report,
    StoppedEarly,
)
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.lease import HeldLease
from cryobench.workers.record.mirror import Mirror

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 20.0
#: Machines that are taken away give 30 seconds.
_PATIENCE_LEAVING_S = 20.0


class StorageGuard:
    """A `cryobench.workers.record.files.Fence` before a trial's folder.

    Args:
        held: the trial's lease.
        folder: the trial's folder.
        report: is told once when the storage goes away.
        should_stop: whether the trial is to leave; then the storage is waited for no longer than a machine is given.
        patience_s: how long a storage that is away is waited for.
    """

    def __init__(
        self,
        held: HeldLease,
        folder: TrialFolder,
        report: Report,
        should_stop: Callable[[], bool],
        patience_s: float,
    ) -> None:
        self.held, self.folder, self.report = held, folder, report
        self._asked_to_stop, self._patience = should_stop, patience_s
        self._away_since: float | None = None
        self._given_up = False

    def require(self) -> None:
        """Come back if the trial is this process's own."""
        while True:
            try:
                self.held.require()
                return
            except (StorageError, DiskFullError) as error:
                if not self.waits_for_storage(error):
                    raise

    def should_stop(self) -> bool:
        """Whether the trial is to leave; raises LeaseLostError if it is another's."""
        if self.held.lost:
            self.held.require()
        return self._asked_to_stop()

    def waits_for_storage(self, error: CryobenchError) -> bool:
        """Wait a while, longer each time; False when patience is at its end, once and for all."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            if not self._given_up:
                self.report(Note(message=f"{error} Until then this trial waits, for {self._patience:.0f} s at most."))
        storage = self.folder.path.parent
        removed = storage.is_dir() and not self.folder.path.exists()  # by somebody who wants the trial gone
        patience = min(self._patience, _PATIENCE_LEAVING_S) if self._asked_to_stop() else self._patience
        away = now - self._away_since
        if self._given_up or removed or away >= patience:
            self._given_up = True
            return False
        time.sleep(min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, away / 2), max(0.01, patience - away)))
        return True

    def storage_is_back(self) -> None:
        """The next time it goes away is another one."""
        self._away_since = None


@contextmanager
def pushing(mirror: Mirror | None, storage: Path, guard: StorageGuard) -> Iterator[tuple[Report, Callable[[], None]]]:
    """What brings the trial's folder to its object store, if there is one.

    While the store is away training goes on: what one upload did not bring, the next one does. Only the end of an
    attempt waits for it.

    Yields:
        A ``report`` that first brings it at the start and the end of an attempt, and what brings it after epochs and
        saved states, in the thread that writes those.
    """
    if mirror is None:
        yield guard.report, lambda: None
        return
    trial = guard.folder.trial_id
    mirror.fence = guard.held.require
    away = False
    mirror.pull_trial(storage, trial, whole=True)
    if guard.folder.result() is not None:
        mirror.push_trial(storage, trial)  # it may be that only the last upload of an earlier attempt was lost

    def upload() -> None:
        nonlocal away
        try:
            mirror.push_trial(storage, trial)
            away = False
        except StorageError as error:
            if not away:
                guard.report(Note(message=f"{error} Training goes on; its files are brought when it is back."))
            away = True

    def push_and_report(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            upload()
        elif isinstance(event, Failed | Interrupted | StoppedEarly | Finished):
            while True:
                try:
                    mirror.push_trial(storage, trial)
                    guard.storage_is_back()
                    break
                except StorageError as error:
                    if not guard.waits_for_storage(error):
                        raise
        guard.report(event)

    yield push_and_report, upload
