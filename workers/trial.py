"""One trial from its spec to its result: a plain function, resumable from its folder after any step."""

from __future__ import annotations

import faulthandler
import os
import platform
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryobench.conf.errors import (
    BadCheckpointError,
    ConfigError,
    CryobenchError,
    HungReadError,
    InterruptedTrialError,
    OutOfMemoryError,
)
from cryobench.conf.trial import TrialSpec
from cryobench.workers.model.numerics import is_refusal
from cryobench.workers.place import Place
from cryobench.workers.record.events import (
    AttemptStarted,
    Event,
    Failed,
    Finished,
    Interrupted,
    Report,
)
from cryobench.workers.record.folder import STACKS, TrialFolder
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.record.result import TestMetrics, TrialResult
from cryobench.workers.training.attempt import Attempt
from cryobench.workers.training.memory import is_out_of_memory
from cryobench.workers.training.provenance import code_version


def run_trial(
    spec: TrialSpec,
    place: Place,
    *,
    trial_id: str | None = None,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    retry_failed: bool = True,
) -> TrialResult:
    """Run a trial to its end, or continue it from its folder; a finished one is only read.

    Args:
        spec: the trial.
        place: where its data, weights and folder are, and what it may use.
        trial_id: its folder's name, where there is one: a release may compute another id than the one under which a
            trial was begun, and the name is what is trusted. By default the spec's own.
        report: called with every event as it is recorded.
        should_stop: asked after every step and evaluated tile; True saves the state and leaves the trial resumable.
        retry_failed: whether a trial that failed for a deterministic reason is tried again.

    Raises:
        InterruptedTrialError: ``should_stop`` said so.
        CryobenchError: the trial failed; its kind and message are recorded in its folder.
    """
    folder = TrialFolder(place.storage, trial_id or spec.trial_id)
    mirror = Mirror(place.mirror) if place.mirror else None
    with folder.locked(), _mirrored(mirror, place.storage, folder, report) as report:
        result = folder.result()
        if result is not None:
            return result
        state = folder.state()
        if state.waits_for_user and not retry_failed:
            raise CryobenchError(state.message or "The trial failed before.")
        folder.write_spec(spec)
        attempt = Attempt(spec, place, folder, report, should_stop, _upload(mirror, place.storage, folder))
        begun = AttemptStarted(host=platform.node(), pid=os.getpid(), device=str(attempt.device), code=code_version())
        report(folder.record(begun))
        try:
            return attempt.run()
        except InterruptedTrialError:
            report(folder.record(Interrupted()))
            raise
        except Exception as error:
            failure = _explained(error, spec)
            if isinstance(failure, HungReadError):
                _dump_stacks(folder.path / STACKS)
            kind = failure.kind if isinstance(failure, CryobenchError) else "crashed"
            message = str(failure) if isinstance(failure, CryobenchError) else f"{type(error).__name__}: {error}"
            report(folder.record(Failed(kind=kind, message=message, trace=traceback.format_exc())))
            if failure is error:
                raise
            raise failure from error


def retest_trial(trial_id: str, place: Place) -> tuple[TestMetrics, TestMetrics]:
    """Test a finished trial's best checkpoint again: the recorded metrics and those found now.

    Raises:
        ConfigError: there is no such trial, it has no result yet, or it was never tested.
        BadCheckpointError: its best checkpoint is gone or damaged.
    """
    if place.mirror:
        Mirror(place.mirror).pull_trial(place.storage, trial_id, whole=True)
    folder = TrialFolder(place.storage, trial_id)
    spec, result = folder.spec(), folder.result()
    if result is None:
        raise ConfigError(f"Trial {trial_id} has no result yet ({folder.state().status}). Run it first.")
    if result.test is None:
        raise ConfigError(f"Trial {trial_id} diverged before its first validation; there is nothing to test.")
    with folder.locked():
        try:
            return result.test, Attempt(spec, place, folder, lambda event: None, lambda: False).retest()
        except (OSError, KeyError, ValueError) as error:
            raise BadCheckpointError(
                f"The best checkpoint of trial {trial_id} cannot be read ({error}). Its result stands, but can only be "
                f"made again by running the trial anew: remove {folder.path} and run its sweep."
            ) from error


@contextmanager
def _mirrored(mirror: Mirror | None, storage: Path, folder: TrialFolder, report: Report) -> Iterator[Report]:
    """A ``report`` that first brings the trial's folder to the object store, if there is one."""
    if mirror is None:
        yield report
        return
    mirror.pull_trial(storage, folder.trial_id, whole=True)

    def push_and_report(event: Event) -> None:
        # Epochs and saved states are uploaded by the thread that writes them; it is idle while these happen.
        if isinstance(event, AttemptStarted | Failed | Interrupted | Finished):
            mirror.push_trial(storage, folder.trial_id)
        report(event)

    yield push_and_report


def _upload(mirror: Mirror | None, storage: Path, folder: TrialFolder) -> Callable[[], None]:
    """Brings the trial's folder to the object store, if there is one."""
    return (lambda: mirror.push_trial(storage, folder.trial_id)) if mirror else (lambda: None)


def _dump_stacks(path: Path) -> None:
    """What every thread is doing: the one that hangs is among them."""
    with path.open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)


def _explained(error: Exception, spec: TrialSpec) -> Exception:
    """The error itself, or what it means where the library's own words do not say it."""
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"Out of memory with batches of {spec.protocol.batch_size} crops, alone on the device, and also with their "
            f"gradient gathered from parts where that could help ({str(error)[:200]}). Use a larger device, or lower "
            "protocol.batch_size (another protocol, so another trial)."
        )
    if is_refusal(error):
        return ConfigError(
            f"This trial cannot be deterministic on its device: {str(error).partition('. ')[0][:300]}. Set "
            "protocol.deterministic=false (another protocol, so another trial), or run it on the CPU."
        )
    return error
