"""The Ray Tune driver: runs an explicit list of trials, each a resumable function of its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.background import BackgroundReconciler
from cryobench.orchestrator.sweep.attaching import take_sweep
from cryobench.orchestrator.sweep.expected_cost import CostBook
from cryobench.orchestrator.sweep.former_names import rename_former_trials
from cryobench.orchestrator.sweep.observer import SweepObserver
from cryobench.orchestrator.sweep.plan import Plan
from cryobench.orchestrator.sweep.progress import SweepProgress
from cryobench.orchestrator.sweep.schedule import in_order
from cryobench.orchestrator.sweep.tune_rounds import TuneRounds
from cryobench.orchestrator.sweep_record import record_sweep
from cryobench.workers.record.mirror import Mirror


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended: trials by status among those run now, whether all was projected, why it stopped early."""

    counts: dict[str, int]
    interrupted: bool
    tracked: bool
    stopped: str | None = None


def run_sweep(
    plan: Plan,
    where: Places,
    console: Console,
    *,
    uri: str | None,
    address: str | None = None,
    retry_failed: bool = False,
    retry_pruned: bool = False,
    wait: bool = True,
) -> SweepOutcome:
    """Run what is left of ``plan``, two or more at a time as resources allow, and project it as it comes.

    Where another process drives this sweep, its end is waited for first.

    Args:
        plan: all trials; those that are complete are only projected.
        where: folders, on a cluster the same on every node.
        console: for the live table. It has its own stream: all else that is printed meanwhile goes to a file.
        uri: MLflow's tracking URI; None for no tracking.
        address: a Ray cluster; None starts Ray on this machine.
        retry_failed: run deterministic failures again.
        retry_pruned: train what was stopped early to its end, whatever the sweep's scheduler says.
        wait: whether another driver of the sweep is waited for.

    Raises:
        TrackingError: MLflow cannot be reached at the start; nothing has run.
        HeldElsewhereError: another process drives the sweep and is not to be waited for.
        StorageError: the storage cannot be used.
        MissingLibraryError: rates are to be suggested, and Optuna is not installed.
    """
    if plan.to_suggest:
        from cryobench.orchestrator.sweep.rate_search import require_optuna

        require_optuna()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    mirror = Mirror(where.storage_url) if where.storage_url else None
    try:
        lease, plan = take_sweep(plan, where, mirror, say, wait=wait)
    except KeyboardInterrupt:
        return SweepOutcome({}, interrupted=True, tracked=True)
    try:
        retry = {"retry_failed": retry_failed, "retry_pruned": retry_pruned}
        return _drive(plan, where, console, say, mirror, uri=uri, address=address, **retry)
    finally:
        lease.give_back()


def _drive(
    plan: Plan,
    where: Places,
    console: Console,
    say: Callable[[str], None],
    mirror: Mirror | None,
    *,
    uri: str | None,
    address: str | None,
    retry_failed: bool,
    retry_pruned: bool,
) -> SweepOutcome:
    where.bring_projections()
    renamed = rename_former_trials(where.storage, [t.spec for t in plan.trials if not t.provisional], mirror)
    for former, present in renamed.items():
        say(f"Trial {former} is called {present} since its name holds the published statistics; the old name finds it.")
    record = record_sweep(where.storage, plan.sweep, plan.trial_ids)
    if mirror:
        mirror.push_projections(where.storage)
    observer = SweepObserver.of(plan, where.storage, uri)

    def warn(text: str) -> None:
        say(f"Warning: {text}")
        observer.warn(text)

    reconciler = BackgroundReconciler(where.storage, record, uri, warn, mirror=mirror)
    todo = in_order(plan.to_run(retry_failed, retry_pruned), CostBook(where).relative_seconds)
    reconciler.note(record.trials)
    progress = SweepProgress(
        console=console,
        specs={t.spec.trial_id: t.spec for t in todo},
        epochs_done={t.spec.trial_id: t.epoch for t in todo if t.epoch},
        total=len(plan.trials) - len(plan.blocked) + plan.to_suggest,
        already=len(plan.trials) - len(plan.blocked) - len(todo),
        to_come=plan.to_suggest,
    )
    interrupted, stopped = False, None
    try:
        if todo or plan.to_suggest:
            with progress:
                run = TuneRounds(plan, todo, where, address, progress, reconciler, mirror, observer)
                interrupted, stopped = run.to_its_end(), run.stopped
    finally:
        observer.driver_ends(progress.counts, interrupted)
        tracked = reconciler.close(progress.finished())
    counts = {name: count for name, count in progress.counts.items() if count}
    return SweepOutcome(counts, interrupted, tracked, stopped)
