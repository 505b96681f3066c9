"""What the driver sees of its trials, passed on to the sweep's log and to Ray's metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

from cryobench.orchestrator.sweep.prometheus import TrialGauge
from cryobench.orchestrator.sweep.sweep_log import Level, SweepLog
from cryobench.workers.record.events import AttemptStarted, Decoding, Ended, EpochFinished, Event, Failed, Finished

#: Epochs of one trial are logged at most this often: their folders hold all of them.
_EPOCHS_EVERY_S = 60.0


class SweepObserver:
    """Told by the driver's watcher, in any thread, what it hears.

    Args:
        log: the sweep's log.
        sweep: its name.
        states: the trials of the sweep by id, each with its state before anything runs.
    """

    def __init__(self, log: SweepLog, sweep: str, states: Mapping[str, str]) -> None:
        self._log, self._states = log, dict(states)
        self._gauge = TrialGauge(sweep)
        self._nodes: dict[str, str] = {}
        self._logged: dict[str, float] = {}
        self._show()

    def tell(self, trial: str, event: Event) -> None:
        """An event that a worker reported."""
        if isinstance(event, AttemptStarted):
            self._nodes[trial] = event.host
            self._log.write(
                "started", trial=trial, node=event.host, pid=event.pid, device=event.device, code=event.code
            )
            self._enter(trial, "running")
        elif isinstance(event, EpochFinished):
            if time.monotonic() - self._logged.get(trial, -_EPOCHS_EVERY_S) >= _EPOCHS_EVERY_S:
                self._logged[trial] = time.monotonic()
                self._write(trial, "epoch", epoch=event.epoch, loss=event.loss, val_miou=event.val_miou)
        elif isinstance(event, Ended):
            self.end(trial, event.status, event.kind, event.message)
        elif isinstance(event, Failed):  # followed by Ended, or by another attempt
            self._write(trial, "attempt_failed", "warning", kind=event.kind, message=event.message)
        elif not isinstance(event, Decoding | Finished):
            plain = event.plain()
            details = {key: value for key, value in plain.items() if key not in ("event", "time")}
            self._write(trial, event.event, "info" if event.event == "resumed" else "warning", **details)

    def recover(self, trial: str, times: int, why: str) -> None:
        """A worker died or had to leave; the trial is tried again."""
        self._write(trial, "retried", "warning", times=times, message=why)
        self._enter(trial, "waiting")

    def end(self, trial: str, status: str, kind: str | None = None, message: str | None = None) -> None:
        """A trial ended in this run."""
        level: Level = "error" if status == "failed" else "info"
        self._write(trial, "ended", level, status=status, kind=kind, message=message)
        self._enter(trial, "waiting" if status == "interrupted" else status)
        self._logged.pop(trial, None)

    def warn(self, message: str) -> None:
        """Something that no single trial is to blame for: reconciling, a node, the storage."""
        self._log.write("warning", level="warning", message=message)

    def forget_running(self, message: str) -> None:
        """All workers are gone at once."""
        self.warn(message)
        for trial, state in self._states.items():
            if state == "running":
                self._states[trial] = "waiting"
        self._show()

    def close(self, counts: Mapping[str, int], interrupted: bool) -> None:
        """The driver is done."""
        self._log.write("driver_ended", counts=dict(counts), interrupted=interrupted)
        self._log.close()

    def _write(self, trial: str, event: str, level: Level = "info", **details: object) -> None:
        self._log.write(event, level=level, trial=trial, node=self._nodes.get(trial), **details)

    def _enter(self, trial: str, state: str) -> None:
        self._states[trial] = state
        self._show()

    def _show(self) -> None:
        self._gauge.show(Counter(self._states.values()))


def first_states(trials: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By id, the state in which a sweep finds its trials: what is planned or was begun waits."""
    return {trial: "waiting" if state in ("pending", "begun") else state for trial, state in trials}
