"""One trial from its spec to its result: a plain function, resumable from its folder after any step."""

from __future__ import annotations

import faulthandler
import os
import platform
import traceback
from collections.abc import Callable
from pathlib import Path

from cryobench.conf.errors import (
    BadCheckpointError,
    ConfigError,
    CryobenchError,
    DiskFullError,
    GpuFaultError,
    HungReadError,
    InterruptedTrialError,
    LeaseLostError,
    OutOfMemoryError,
    StoppedEarlyError,
    StorageError,
    storage_trouble,
)
from cryobench.conf.trial import TrialSpec
from cryobench.workers.model.numerics import is_refusal
from cryobench.workers.place import Place
from cryobench.workers.record.comparison import pruned
from cryobench.workers.record.events import AttemptStarted, Failed, Interrupted, Note, Report, StoppedEarly
from cryobench.workers.record.files import fenced
from cryobench.workers.record.folder import STACKS, TrialFolder
from cryobench.workers.record.lease import Lease, leased
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.record.result import TestMetrics, TrialResult
from cryobench.workers.record.storage_guard import StorageGuard, pushing
from cryobench.workers.training.attempt import Attempt
from cryobench.workers.training.gpu_fault import is_gpu_fault
from cryobench.workers.training.memory import is_out_of_memory
from cryobench.workers.training.provenance import code_version

#: How much longer than a lease stands another's is waited for by default: one that is dead is taken over.
_BEYOND_LEASE_S = 15.0


def run_trial(
    spec: TrialSpec,
    place: Place,
    *,
    trial_id: str | None = None,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    given_up: Callable[[], str | None] = lambda: None,
    retry_failed: bool = True,
    waits_for_others: bool = False,
) -> TrialResult:
    """Run a trial to its end, or continue it from its folder; a finished one is only read.

    One process at a time does so, whatever machine it is on: it holds the trial's lease.

    Args:
        spec: the trial.
        place: where its data, weights and folder are, and what it may use.
        trial_id: its folder's name, where there is one: a release may compute another id than the one under which a
            trial was begun, and the name is what is trusted. By default the spec's own.
        report: called with every event as it is recorded.
        should_stop: asked after every step and evaluated tile; True saves the state and leaves the trial resumable.
        given_up: asked when it stopped; says why the trial is not to be trained to its end, None where it is to go on.
        retry_failed: whether a trial that failed for a deterministic reason is tried again.
        waits_for_others: whether to wait as long as another process runs the trial; by default a little longer than a
            lease stands.

    Raises:
        InterruptedTrialError: ``should_stop`` said so.
        StoppedEarlyError: it did, and ``given_up`` said why; the trial stands as pruned.
        HeldElsewhereError: another process runs it.
        LeaseLostError: another process took it over while this one was paused or cut off; it wrote nothing since.
        CryobenchError: the trial failed; its kind and message are recorded in its folder.
    """
    folder = TrialFolder(place.storage, trial_id or spec.trial_id)
    mirror = Mirror(place.mirror) if place.mirror else None
    if mirror is None and (result := folder.result()) is not None:
        return result
    file = mirror.trial_lease(folder.trial_id) if mirror else folder.lease_file()
    length = place.resources.lease_s

    def waiting(lease: Lease | None) -> None:
        report(Note(message=f"Trial {folder.trial_id} is being run by {lease}; waiting for it."))

    with leased(
        file,
        f"Trial {folder.trial_id}",
        length_s=length,
        patience_s=None if waits_for_others else length + _BEYOND_LEASE_S,
        should_stop=should_stop,
        waiting=waiting,
    ) as held:
        guard = StorageGuard(held, folder, report, should_stop, place.resources.storage_patience_s)
        with fenced(folder.path, guard), pushing(mirror, place.storage, guard) as (report_pushed, upload):
            if file.unconditional is not None:
                text = f"Two workers at once cannot be excluded on this storage: {file.unconditional}."
                report(Note(message=text))
            return _run_held(spec, place, folder, report_pushed, guard.should_stop, given_up, upload, retry_failed)


def _run_held(
    spec: TrialSpec,
    place: Place,
    folder: TrialFolder,
    report: Report,
    should_stop: Callable[[], bool],
    given_up: Callable[[], str | None],
    upload: Callable[[], None],
    retry_failed: bool,
) -> TrialResult:
    result = folder.result()
    if result is not None:
        return result
    state = folder.state()
    if state.waits_for_user and not retry_failed:
        raise CryobenchError(state.message or "The trial failed before.")
    folder.write_spec(spec)
    attempt = Attempt(spec, place, folder, report, should_stop, upload)
    begun = AttemptStarted(host=platform.node(), pid=os.getpid(), device=str(attempt.device), code=code_version())
    report(folder.record(begun))
    try:
        return attempt.run()
    except LeaseLostError:
        raise  # whoever runs it now is not to find a word of ours
    except InterruptedTrialError as stop:
        why = given_up()
        if why is None:
            report(folder.record(Interrupted()))
            raise
        report(folder.record(StoppedEarly(epoch=folder.state().epoch, message=why)))
        raise StoppedEarlyError(why) from stop
    except Exception as error:
        failure = _explained(error, spec, folder)
        _record_failure(failure, folder, report)
        if failure is error:
            raise
        raise failure from error


def _record_failure(failure: Exception, folder: TrialFolder, report: Report) -> None:
    kind = failure.kind if isinstance(failure, CryobenchError) else "crashed"
    message = str(failure) if isinstance(failure, CryobenchError) else f"{type(failure).__name__}: {failure}"
    try:
        if isinstance(failure, HungReadError):
            _dump_stacks(folder.path / STACKS)
        report(folder.record(Failed(kind=kind, message=message, trace=traceback.format_exc())))
    except (StorageError, DiskFullError, OSError):
        if not isinstance(failure, StorageError | DiskFullError):
            raise  # else the storage is what failed: there is nowhere to write it, and the trial stays resumable


def retest_trial(trial_id: str, place: Place) -> tuple[TestMetrics, TestMetrics]:
    """Test a finished trial's best checkpoint again: the recorded metrics and those found now.

    Raises:
        ConfigError: there is no such trial, it has no result yet, or it was never tested.
        BadCheckpointError: its best checkpoint is gone or damaged.
    """
    mirror = Mirror(place.mirror) if place.mirror else None
    if mirror:
        mirror.pull_trial(place.storage, trial_id, whole=False)
    folder = TrialFolder(place.storage, trial_id)
    spec, result = folder.spec(), folder.result()
    if result is None:
        raise ConfigError(f"Trial {trial_id} has no result yet ({folder.state().status}). Run it first.")
    if result.test is None:
        raise ConfigError(f"Trial {trial_id} diverged before its first validation; there is nothing to test.")
    if mirror:  # no lease: nobody runs a finished trial
        mirror.pull_trial(place.storage, trial_id, whole=True)
    try:
        return result.test, Attempt(spec, place, folder, lambda event: None, lambda: False).retest()
    except (OSError, KeyError, ValueError) as error:
        if why := pruned(folder):
            raise BadCheckpointError(why) from error
        raise BadCheckpointError(
            f"The best checkpoint of trial {trial_id} cannot be read ({error}). Its result stands, but can only be "
            f"made again by running the trial anew: remove {folder.path} and run its sweep."
        ) from error


def _dump_stacks(path: Path) -> None:
    """What every thread is doing: the one that hangs is among them."""
    with path.open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)


def _explained(error: Exception, spec: TrialSpec, folder: TrialFolder) -> Exception:
    """The error itself, or what it means where the library's own words do not say it."""
    if is_gpu_fault(error):
        return GpuFaultError(
            f"The GPU of {platform.node()} failed ({' '.join(str(error).split())[:200]}). Look at nvidia-smi and the "
            "kernel's log there; the trial goes on elsewhere from its last checkpoint."
        )
    if isinstance(error, OSError) and str(error.filename or "").startswith(str(folder.path)):
        missing_alone = isinstance(error, FileNotFoundError) and folder.path.is_dir()
        return error if missing_alone else storage_trouble(error, folder.path) or error
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
