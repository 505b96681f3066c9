"""What a Ray worker runs: one trial after another in one process, reporting to the driver."""

from __future__ import annotations

import gc
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.trainable import wrap_function

from cryobench.conf.errors import AvoidedNodeError, CryobenchError, InterruptedTrialError, StoppedEarlyError
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.sweep.capacity import device_for_trial
from cryobench.orchestrator.sweep.desk import Word
from cryobench.orchestrator.sweep.failure_policy import CRASHED, PREEMPTED, treatment
from cryobench.orchestrator.sweep.prometheus import WorkerGauges
from cryobench.orchestrator.sweep.reporter import Reporter
from cryobench.orchestrator.sweep.software import Software
from cryobench.orchestrator.sweep.system_load import LoadSampler
from cryobench.workers.place import Place
from cryobench.workers.record.events import Diverged, Ended, EpochFinished, Event, Placed, Resumed, Stumbled
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.result import TrialResult
from cryobench.workers.record.storage_mark import require_storage
from cryobench.workers.termination import asked_to_leave, busy, listen
from cryobench.workers.training.memory import gpu_memory, release
from cryobench.workers.trial import run_trial

_ASK_EVERY_S = 1.0
#: A trial that another sweep runs is waited for: its result is this sweep's as well.
_RUN = partial(run_trial, waits_for_others=True)


class AttemptFailedError(RuntimeError):
    """Raised for Tune, which tries again what raises; the driver was told why before."""


@dataclass(frozen=True)
class SweepTerms:
    """What all workers of a sweep are given.

    ``specs`` is a reference to the specs of all trials, as JSON, which a worker asks for once: terms are brought anew
    for each trial, and a sweep has thousands. A trial that was suggested meanwhile comes with its own. ``desk`` is the
    handle of the `Desk` actor; ``software`` what the driver runs; ``mark`` the storage's id, None where it is an object
    store; ``run`` what runs a trial.
    """

    place: Place
    specs: Any
    desk: Any
    software: Software
    mark: str | None
    run: Callable[..., TrialResult] = _RUN


def trainable(terms: SweepTerms) -> Any:
    """The class that Tune runs, one instance a worker process."""
    bound = tune.with_parameters(_run_in_worker, terms=terms)

    class Worker(wrap_function(bound)):  # type: ignore[misc]
        """Notes SIGTERM, which Ray would end the process by; a machine that goes away sends it."""

        def setup(self, config: dict[str, Any]) -> None:
            listen()  # in the process's main thread, where alone it can be done
            super().setup(config)
            # What is loaded by now stays: without it each collection between trials looks through all libraries, 0.2 s.
            gc.collect()
            gc.freeze()

    return Worker


def _run_in_worker(config: dict[str, Any], terms: SweepTerms) -> None:
    """Run the trial that ``config`` names.

    A failure that another attempt would only repeat ends the trial here, recorded in its folder. All else is raised,
    so that Tune hands the trial out again: the driver has it go on from its checkpoint, here or elsewhere, or ends it.
    """
    trial, report = config["trial"], Reporter(tune.report)
    node = ray.get_runtime_context().get_node_id()
    answer = ray.get(terms.desk.may_begin.remote(trial, node))
    if answer == "ended":
        report(Ended(status="interrupted"))
        return
    device = device_for_trial(len(ray.get_gpu_ids()))
    report(Placed(node=node, host=platform.node(), pid=os.getpid(), device=device, device_memory_mb=_memory(device)))
    release()  # what the trial before left in this process
    spec = _spec(config, terms)
    place = replace(terms.place.on_this_node(), device=device)
    gauges = WorkerGauges(spec, gpu_memory)
    load = LoadSampler(TrialFolder(place.storage, trial), gpu=device != "cpu")
    with busy(), DriverListener(terms.desk, trial) as driver, load, closing(gauges):
        trained = False

        def given_up() -> str | None:
            return None if trained else driver.word.pruned

        def should_stop() -> bool:
            report.flush_if_due()
            return asked_to_leave() or driver.word.leave or given_up() is not None

        def tell(event: Event) -> None:
            nonlocal trained  # then only the test is left: a result costs less than what was spent on it
            trained = trained or _is_trained(event, spec)
            gauges.tell(event)
            report(event)

        try:
            if answer == "elsewhere":
                raise AvoidedNodeError(f"Nothing begins on {platform.node()} any more.")
            _require_same_world(terms)
            result = terms.run(spec, place, trial_id=trial, report=tell, should_stop=should_stop, given_up=given_up)
        except StoppedEarlyError as error:
            report(Ended(status="pruned", message=str(error)))
            return
        except InterruptedTrialError as error:
            if not asked_to_leave():
                report(Ended(status="interrupted"))
                return
            report(Stumbled(kind=PREEMPTED, message=str(error)))
            raise AttemptFailedError(str(error)) from None
        except CryobenchError as error:
            if treatment(error.kind).retry == "never":
                report(Ended(status="failed", kind=error.kind, message=str(error)))
                return
            report(Stumbled(kind=error.kind, message=str(error)))
            raise AttemptFailedError(str(error)) from None
        except Exception as error:
            report(Stumbled(kind=CRASHED, message=f"{type(error).__name__}: {error}"))
            raise
    report(Ended(status=result.status, epochs=result.epochs))


def _is_trained(event: Event, spec: TrialSpec) -> bool:
    if isinstance(event, EpochFinished | Resumed):
        return event.epoch >= spec.protocol.epochs
    return isinstance(event, Diverged)


def _spec(config: dict[str, Any], terms: SweepTerms) -> TrialSpec:
    return TrialSpec.model_validate_json(config.get("spec") or _all_specs(terms.specs)[config["trial"]])


@lru_cache(maxsize=1)
def _all_specs(reference: Any) -> dict[str, str]:
    found: dict[str, str] = ray.get(reference)
    return found


def _require_same_world(terms: SweepTerms) -> None:
    """Check that this node runs the driver's software and sees its storage."""
    terms.software.require_here(platform.node())
    if terms.mark is not None:
        require_storage(terms.place.storage, terms.mark, platform.node())


def _memory(device: str) -> float | None:
    return torch.cuda.get_device_properties(0).total_memory / 1e6 if device == "cuda" else None


class DriverListener:
    """Asks every second for the driver's word about a trial; the last one stands."""

    def __init__(self, desk: Any, trial: str) -> None:
        self.word = Word()
        self._desk, self._trial, self._done = desk, trial, threading.Event()
        self._thread = threading.Thread(target=self._listen, name="leave", daemon=True)

    def __enter__(self) -> DriverListener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _listen(self) -> None:
        while not self._done.wait(_ASK_EVERY_S):
            try:
                self.word = ray.get(self._desk.word_about.remote(self._trial), timeout=10)
            except ray.exceptions.RayError:
                time.sleep(_ASK_EVERY_S)
            if self.word.leave:
                return
