"""What a Ray worker runs: one trial after another in one process, reporting to the driver."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import Any

import ray
from ray import tune
from ray.tune.trainable import wrap_function

from cryobench.conf.errors import CryobenchError, HungReadError, InterruptedTrialError
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.sweep.prometheus import WorkerGauges
from cryobench.orchestrator.sweep.system_load import LoadSampler
from cryobench.workers.place import Place
from cryobench.workers.record.events import (
    AttemptStarted,
    CheckpointDiscarded,
    Decoding,
    Diverged,
    Ended,
    EpochFinished,
    Event,
    Failed,
    Finished,
    Note,
    OutOfMemory,
    Resumed,
)
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.termination import asked_to_leave, busy, listen
from cryobench.workers.training.memory import gpu_memory, release
from cryobench.workers.trial import run_trial

#: Reported events the driver is interested in; all others stay in the folder.
_NEWS = (
    AttemptStarted,
    Resumed,
    EpochFinished,
    Failed,
    Diverged,
    Finished,
    Decoding,
    Note,
    OutOfMemory,
    CheckpointDiscarded,
)
_ASK_EVERY_S = 1.0


class Leave:
    """The driver's word to all workers, on whatever node: save and leave. It runs as an actor."""

    def __init__(self) -> None:
        self._said = False

    def say(self) -> None:
        """Say it."""
        self._said = True

    def said(self) -> bool:
        """Whether it was said."""
        return self._said


def trainable(place: Place, specs: dict[str, dict[str, Any]], leave: Any) -> Any:
    """The class that Tune runs, one instance a worker process."""
    bound = tune.with_parameters(_run_in_worker, place=place, specs=specs, leave=leave)

    class Worker(wrap_function(bound)):  # type: ignore[misc]
        """Notes SIGTERM, which Ray would end the process by; a machine that goes away sends it."""

        def setup(self, config: dict[str, Any]) -> None:
            listen()  # in the process's main thread, where alone it can be done
            super().setup(config)

    return Worker


def _run_in_worker(config: dict[str, Any], place: Place, specs: dict[str, dict[str, Any]], leave: Any) -> None:
    """Run the trial that ``config`` names.

    A failure that is explained ends the trial here, recorded in its folder; anything unexpected is raised, so that
    Tune tries again from the last checkpoint, and so is having to leave this machine.
    """
    spec = TrialSpec.model_validate(specs[config["trial"]])
    gauges = WorkerGauges(spec, gpu_memory)
    load = LoadSampler(TrialFolder(place.storage, config["trial"]), gpu=place.device != "cpu")

    def report(event: Event) -> None:
        gauges.tell(event)
        if isinstance(event, _NEWS):
            tune.report(event.plain())

    release()  # what the trial before left in this process
    with busy(), DriverListener(leave) as driver, load, closing(gauges):
        try:
            result = run_trial(
                spec,
                place,
                trial_id=config["trial"],
                report=report,
                should_stop=lambda: asked_to_leave() or driver.says_leave,
            )
        except InterruptedTrialError:
            if asked_to_leave():
                raise
            tune.report(Ended(status="interrupted").plain())
            return
        except HungReadError:
            raise  # its thread still hangs in this process: another one is to go on
        except CryobenchError as error:
            tune.report(Ended(status="failed", kind=error.kind, message=str(error)).plain())
            return
    tune.report(Ended(status=result.status, epochs=result.epochs).plain())


class DriverListener:
    """Asks every second whether the driver said to leave."""

    def __init__(self, leave: Any) -> None:
        self.says_leave = False
        self._leave, self._done = leave, threading.Event()
        self._thread = threading.Thread(target=self._listen, name="leave", daemon=True)

    def __enter__(self) -> DriverListener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _listen(self) -> None:
        while not self._done.wait(_ASK_EVERY_S):
            try:
                self.says_leave = bool(ray.get(self._leave.said.remote(), timeout=10))
            except ray.exceptions.RayError:
                time.sleep(_ASK_EVERY_S)
            if self.says_leave:
                return
