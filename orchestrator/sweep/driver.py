"""The Ray Tune driver: runs an explicit list of trials, each a resumable function of its folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cryobench.conf.errors import OutOfMemoryError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.background import BackgroundReconciler
from cryobench.orchestrator.sweep.attaching import take_sweep
from cryobench.orchestrator.sweep.capacity import require_fit
from cryobench.orchestrator.sweep.cluster_nodes import ClusterNodes
from cryobench.orchestrator.sweep.crash import record_failure
from cryobench.orchestrator.sweep.desk import Desk
from cryobench.orchestrator.sweep.expected_cost import CostBook
from cryobench.orchestrator.sweep.failure_policy import LOW_MEMORY_WORDS, FailurePolicy
from cryobench.orchestrator.sweep.former_names import rename_former_trials
from cryobench.orchestrator.sweep.observer import SweepObserver
from cryobench.orchestrator.sweep.plan import Plan, PlannedTrial
from cryobench.orchestrator.sweep.preemption import leaving_on_sigterm
from cryobench.orchestrator.sweep.progress import SweepProgress
from cryobench.orchestrator.sweep.ray_session import ray_log, ray_session
from cryobench.orchestrator.sweep.schedule import in_order
from cryobench.orchestrator.sweep_record import record_sweep
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.record.storage_mark import mark_storage

if TYPE_CHECKING:
    from cryobench.orchestrator.sweep.placement import Placement
    from cryobench.orchestrator.sweep.stopping import NoNodeLeft


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
        wait: whether another driver of the sweep is waited for.

    Raises:
        TrackingError: MLflow cannot be reached at the start; nothing has run.
        HeldElsewhereError: another process drives the sweep and is not to be waited for.
        StorageError: the storage cannot be used.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    mirror = Mirror(where.storage_url) if where.storage_url else None
    try:
        lease, plan = take_sweep(plan, where, mirror, say, wait=wait)
    except KeyboardInterrupt:
        return SweepOutcome({}, interrupted=True, tracked=True)
    try:
        return _drive(plan, where, console, say, mirror, uri=uri, address=address, retry_failed=retry_failed)
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
    todo = in_order(plan.to_run(retry_failed), CostBook(where).relative_seconds)
    reconciler.note(record.trials)
    progress = SweepProgress(
        console=console,
        specs={t.spec.trial_id: t.spec for t in todo},
        epochs_done={t.spec.trial_id: t.epoch for t in todo if t.epoch},
        total=len(plan.trials) - len(plan.blocked),
        already=len(plan.trials) - len(plan.blocked) - len(todo),
    )
    interrupted, stopped = False, None
    try:
        if todo:
            with progress:
                run = _Run(plan, todo, where, address, progress, reconciler, mirror, observer)
                interrupted, stopped = run.to_its_end(), run.stopped
    finally:
        observer.driver_ends(progress.counts, interrupted)
        tracked = reconciler.close(progress.finished())
    counts = {name: count for name, count in progress.counts.items() if count}
    return SweepOutcome(counts, interrupted, tracked, stopped)


@dataclass
class _Run:
    """The trials of a sweep under Ray Tune, in as many rounds as it takes."""

    plan: Plan
    todo: list[PlannedTrial]
    where: Places
    address: str | None
    progress: SweepProgress
    reconciler: BackgroundReconciler
    mirror: Mirror | None
    observer: SweepObserver
    stopped: str | None = None
    _nodes: ClusterNodes = field(init=False)
    _policy: FailurePolicy = field(init=False)

    def __post_init__(self) -> None:
        self._policy = FailurePolicy(self.plan.sweep.resources.crash_retries, lambda: self._nodes.alive())

    def to_its_end(self) -> bool:
        """Whether trials are left: the user interrupted, or ``stopped`` says why nothing can run any more.

        A round ends early when a node runs out of memory, where Tune gives up, and leaves trials whose worker could not
        be started; the next one takes up what is left.

        Raises:
            OutOfMemoryError: nodes ran out of memory more often than is retried.
        """
        concurrent, retries_left = self.resources.max_concurrent, self.resources.crash_retries
        log = ray_log(self.where.storage, self.plan.sweep.name)
        while True:
            before = self._left()
            with ray_session(self.address, log) as own_ray:
                try:
                    self._fit(concurrent)
                except KeyboardInterrupt:
                    return True
                except RuntimeError as error:
                    # Tune gives up where Ray ends a worker to save the node from running out of memory.
                    if LOW_MEMORY_WORDS not in str(error):
                        raise
                    running = len(self.progress.running())
                    if not (own_ray and retries_left):
                        raise _out_of_memory(running) from error
                    concurrent = max(1, running - 1)
                    self.progress.tell_low_memory(concurrent)
                    self.observer.forget_running(f"A node ran out of memory; going on, {concurrent} at a time.")
                    retries_left -= 1
                    continue
            left = self._left()
            if not left or self.stopped or self.progress.interrupted() or left == before:
                return bool(left)

    @property
    def resources(self) -> ResourceSpec:
        """What a trial gets."""
        return self.plan.sweep.resources

    def _left(self) -> set[str]:
        return self.progress.specs.keys() - self.progress.finished()

    def _fit(self, concurrent: int | None) -> None:
        """Run what has not ended through one Tuner."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from cryobench.orchestrator.sweep.gpu_share import GpuShares
        from cryobench.orchestrator.sweep.placement import Placement
        from cryobench.orchestrator.sweep.stopping import NoNodeLeft

        specs = {t.spec.trial_id: t.spec for t in self.todo if not self.progress.ended(t.spec.trial_id)}
        self._nodes = ClusterNodes(ray.nodes, self.progress.say)
        placement = Placement(self.resources, self._nodes, self._policy, GpuShares(specs, self.where.storage))
        require_fit(self._nodes.alive().values(), *placement.needs())
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(placement.at_a_time() + 2)  # more would be decided too early
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()  # no other node's end takes it along
        stopper = NoNodeLeft(self._nodes, self._policy, self.progress.running, placement.needs, self.progress.say)
        with tempfile.TemporaryDirectory(prefix="cryobench-tune-") as scratch:
            tuner = self._tuner(specs, scratch, desk, placement, stopper, concurrent)
            with leaving_on_sigterm(lambda: desk.say_leave.remote(), self.progress.running):
                tuner.fit()
        self.stopped = stopper.reason

    def _tuner(
        self,
        specs: dict[str, TrialSpec],
        scratch: str,
        desk: Any,
        placement: Placement,
        stopper: NoNodeLeft,
        concurrent: int | None,
    ) -> Any:
        from ray import tune

        from cryobench.orchestrator.sweep.placement import placing
        from cryobench.orchestrator.sweep.software import Software
        from cryobench.orchestrator.sweep.trainable import SweepTerms, trainable
        from cryobench.orchestrator.sweep.watcher import Watcher

        def failed(trial: str, kind: str, message: str) -> str:
            return record_failure(self.where.storage, specs[trial], kind, message, self.mirror)

        terms = SweepTerms(
            place=self.where.for_trials(self.resources),
            specs={trial: spec.model_dump(mode="json") for trial, spec in specs.items()},
            desk=desk,
            software=Software.here(),
            mark=None if self.where.storage_url else mark_storage(self.where.storage),
        )
        watcher = Watcher(
            self.progress, self.reconciler, self.observer, self._policy, placement, self._nodes, desk, failed
        )
        return tune.Tuner(
            tune.with_resources(trainable(terms), {"cpu": self.resources.cpus_per_trial}),  # Placing asks for the rest
            param_space={"trial": tune.grid_search(list(specs))},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                scheduler=placing()(placement),
                max_concurrent_trials=concurrent,
                trial_name_creator=lambda trial: str(trial.config["trial"]),
                trial_dirname_creator=lambda trial: str(trial.config["trial"]),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=-1),  # the watcher's policy counts, by kind
                stop=stopper,
                callbacks=[watcher],
                verbose=0,
            ),
        )


def _out_of_memory(running: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"A node ran out of memory, the last time with {running} trials at a time. Lower resources.max_concurrent or "
        "use larger nodes, then run the same command again: finished trials are kept, the others continue."
    )
