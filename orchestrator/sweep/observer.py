"""What the driver sees of its trials, passed on to the sweep's log and to Ray's metrics."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cryobench.orchestrator.sweep.plan import Plan
from cryobench.orchestrator.sweep.prometheus import TrialGauge
from cryobench.orchestrator.sweep.sweep_log import Level, SweepLog
from cryobench.workers.record.events import Decoding, Ended, EpochFinished, Event, Placed, Stumbled
from cryobench.workers.training.provenance import code_version

#: Epochs of one trial are logged at most this often: their folders hold all of them.
_EPOCHS_EVERY_S = 60.0
#: States of a plan that the metrics call waiting.
_WAITING = {"pending": "waiting", "begun": "waiting"}


class SweepObserver:
    """Told by the driver's watcher, in any thread, what it hears.

    Args:
        log: the sweep's log.
        sweep: its name.
        states: the trials of the sweep by id, each with its state before anything runs.
    """

    def __init__(self, log: SweepLog, sweep: str, states: Mapping[str, str]) -> None:
        self._log, self._states, self._counts = log, dict(states), Counter(states.values())
        self._gauge = TrialGauge(sweep)
        self._nodes: dict[str, str] = {}
        self._logged: dict[str, float] = {}

    @classmethod
    def of(cls, plan: Plan, storage: Path, uri: str | None) -> SweepObserver:
        """The observer of a driver that begins to run ``plan``; ``uri``, MLflow's, is logged without its password."""
        log = SweepLog(storage, plan.sweep.name, uri or "")
        states = {t.spec.trial_id: _WAITING.get(t.state, t.state) for t in plan.trials if not t.provisional}
        resources = plan.sweep.resources.model_dump(mode="json")
        log.write(
            "driver_started",
            node=platform.node(),
            pid=os.getpid(),
            code=code_version(),
            tracking=uri,
            states=dict(Counter(states.values())),
            blocked=len(plan.blocked),
            resources=resources,
        )
        return cls(log, plan.sweep.name, states)

    def add(self, trial: str) -> None:
        """A trial that was suggested."""
        self._log.write("suggested", trial=trial)
        self._enter(trial, "waiting")

    def tell(self, trial: str, event: Event) -> None:
        """An event that a worker reported."""
        if isinstance(event, Placed):
            self._nodes[trial] = event.host
            self._log.write("started", trial=trial, node=event.host, pid=event.pid, device=event.device)
            self._enter(trial, "running")
        elif isinstance(event, EpochFinished):
            if time.monotonic() - self._logged.get(trial, -_EPOCHS_EVERY_S) >= _EPOCHS_EVERY_S:
                self._logged[trial] = time.monotonic()
                self._write(trial, "epoch", epoch=event.epoch, loss=event.loss, val_miou=event.val_miou)
        elif isinstance(event, Ended):
            self.end(trial, event.status, event.kind, event.message)
        elif isinstance(event, Stumbled):  # followed by what the driver decides
            self._write(trial, "attempt_failed", "warning", kind=event.kind, message=event.message)
        elif not isinstance(event, Decoding):
            plain = event.plain()
            details = {key: value for key, value in plain.items() if key not in ("event", "time")}
            self._write(trial, event.event, "info" if event.event == "resumed" else "warning", **details)

    def recover(self, trial: str, why: str) -> None:
        """An attempt failed and the trial goes on."""
        self._write(trial, "retried", "warning", message=why)
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
        for trial, state in list(self._states.items()):
            if state == "running":
                self._enter(trial, "waiting")

    def driver_ends(self, counts: Mapping[str, int], interrupted: bool) -> None:
        """The driver is done with its trials."""
        self._log.write("driver_ended", counts=dict(counts), interrupted=interrupted)

    def _write(self, trial: str, event: str, level: Level = "info", **details: object) -> None:
        self._log.write(event, level=level, trial=trial, node=self._nodes.get(trial), **details)

    def _enter(self, trial: str, state: str) -> None:
        self._counts[self._states.get(trial, state)] -= trial in self._states
        self._counts[state] += 1
        self._states[trial] = state
        self._gauge.show(self._counts)
