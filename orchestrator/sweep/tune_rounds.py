"""A sweep's trials under Ray Tune: one Tuner after another until all of them have ended, or nothing can run."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryobench.conf.errors import CryobenchError, OutOfMemoryError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.background import BackgroundReconciler
from cryobench.orchestrator.sweep.capacity import require_fit
from cryobench.orchestrator.sweep.cluster_nodes import ClusterNodes
from cryobench.orchestrator.sweep.crash import record_failure
from cryobench.orchestrator.sweep.desk import Desk
from cryobench.orchestrator.sweep.failure_policy import LOW_MEMORY_WORDS, FailurePolicy
from cryobench.orchestrator.sweep.observer import SweepObserver
from cryobench.orchestrator.sweep.plan import Plan
from cryobench.orchestrator.sweep.preemption import leaving_on_sigterm
from cryobench.orchestrator.sweep.progress import SweepProgress
from cryobench.orchestrator.sweep.ray_session import ray_log, ray_session
from cryobench.orchestrator.sweep.suggestions import record_left, record_suggestion
from cryobench.orchestrator.sweep.trial_maker import PlannedTrial
from cryobench.orchestrator.sweep_record import record_sweep
from cryobench.workers.record.mirror import Mirror
from cryobench.workers.record.storage_mark import mark_storage

if TYPE_CHECKING:
    from cryobench.orchestrator.sweep.placement import Placement
    from cryobench.orchestrator.sweep.rate_search import RateSearch
    from cryobench.orchestrator.sweep.stopping import NoNodeLeft
    from cryobench.orchestrator.sweep.trial_queue import TrialQueue


@dataclass
class TuneRounds:
    """The trials of a sweep under Ray Tune, in as many rounds as it takes.

    ``todo`` are those that are there already; with ``search`` it suggests more. ``stopped`` says why nothing can run
    any more.
    """

    plan: Plan
    todo: list[PlannedTrial]
    where: Places
    address: str | None
    progress: SweepProgress
    reconciler: BackgroundReconciler
    mirror: Mirror | None
    observer: SweepObserver
    stopped: str | None = None
    _search: RateSearch | None = None
    _specs: dict[str, TrialSpec] = field(default_factory=dict)
    _leaving: bool = False
    _nodes: ClusterNodes = field(init=False)
    _policy: FailurePolicy = field(init=False)

    def __post_init__(self) -> None:
        if self.plan.to_suggest:
            self._search = self._make_search()
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
            before = self._left(), self._to_suggest()
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
            left = self._left(), self._to_suggest()
            if not any(left) or self.stopped or self._leaving or self.progress.interrupted() or left == before:
                return any(left)

    @property
    def resources(self) -> ResourceSpec:
        """What a trial gets."""
        return self.plan.sweep.resources

    def _left(self) -> set[str]:
        return self.progress.specs.keys() - self.progress.finished()

    def _to_suggest(self) -> int:
        return self._search.left if self._search else 0

    def _fit(self, concurrent: int | None) -> None:
        """Run what has not ended through one Tuner."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from cryobench.orchestrator.sweep.gpu_share import GpuShares
        from cryobench.orchestrator.sweep.placement import Placement
        from cryobench.orchestrator.sweep.stopping import NoNodeLeft

        specs = {t: spec for t, spec in self.progress.specs.items() if not self.progress.ended(t)}
        self._specs = specs  # a suggested trial joins them
        self._nodes = ClusterNodes(ray.nodes, self.progress.say)
        placement = Placement(self.resources, self._nodes, self._policy, GpuShares(specs, self.where.storage))
        require_fit(self._nodes.alive().values(), *placement.needs())
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(placement.at_a_time() + 2)  # more would be decided too early
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()  # no other node's end takes it along
        stopper = NoNodeLeft(self._nodes, self._policy, self.progress.running, placement.needs, self.progress.say)
        with tempfile.TemporaryDirectory(prefix="cryobench-tune-") as scratch:
            tuner = self._tuner(specs, scratch, desk, placement, stopper, concurrent)

            def leave() -> None:
                self._leaving = True
                desk.say_leave.remote()

            with leaving_on_sigterm(leave, self.progress.running):
                tuner.fit()
        self.stopped = stopper.reason
        if self._search is not None:  # a cell may have come to its end before its last suggestion
            try:
                record_left(self.where.storage, self.plan.sweep.name, self._search.left)
            except CryobenchError as error:  # for status alone
                self.observer.warn(str(error))

    def _tuner(
        self,
        specs: dict[str, TrialSpec],
        scratch: str,
        desk: Any,
        placement: Placement,
        stopper: NoNodeLeft,
        concurrent: int | None,
    ) -> Any:
        import ray
        from ray import tune

        from cryobench.orchestrator.sweep.software import Software
        from cryobench.orchestrator.sweep.trainable import SweepTerms, trainable
        from cryobench.orchestrator.sweep.watcher import Watcher

        def failed(trial: str, kind: str, message: str) -> str:
            return record_failure(self.where.storage, specs[trial], kind, message, self.mirror)

        terms = SweepTerms(
            place=self.where.for_trials(self.resources),
            specs=ray.put({trial: spec.model_dump_json() for trial, spec in specs.items()}),
            desk=desk,
            software=Software.here(),
            mark=None if self.where.storage_url else mark_storage(self.where.storage),
        )
        watcher = Watcher(
            self.progress, self.reconciler, self.observer, self._policy, placement, self._nodes, desk, failed
        )
        return tune.Tuner(
            tune.with_resources(trainable(terms), {"cpu": self.resources.cpus_per_trial}),  # Placing asks for the rest
            tune_config=tune.TuneConfig(
                search_alg=self._source(specs),
                num_samples=-1,  # as many as it gives
                reuse_actors=True,
                scheduler=self._scheduler(specs, desk, placement),
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

    def _scheduler(self, specs: dict[str, TrialSpec], desk: Any, placement: Placement) -> Any:
        """Tune's order of trials, with early stopping where it is asked for."""
        from cryobench.orchestrator.sweep.early_stopping import EarlyStopping, EarlyStops, scores_in
        from cryobench.orchestrator.sweep.placement import placing

        if self.plan.sweep.scheduler == "none":
            return placing()(placement)
        everything = {t.spec.trial_id: t.spec for t in self.plan.trials if not t.provisional} | self.progress.specs
        stops = EarlyStops(
            self.plan.sweep.scheduler,
            specs,
            former={trial: spec for trial, spec in everything.items() if trial not in specs},
            scores=lambda trial: scores_in(self.where.storage, trial),
            prune=lambda trial, why: desk.prune.remote(trial, why),
            exempt={t.spec.trial_id for t in self.todo if t.state == "pruned"},
        )
        return placing(EarlyStopping)(placement, stops)

    def _make_search(self) -> RateSearch:
        from cryobench.orchestrator.sweep.rate_search import CellStudy, RateSearch, Standing, standing

        assert self.plan.sweep.lr_search is not None
        runs = {t.spec.trial_id for t in self.todo}
        known: dict[str, dict[float, Standing]] = defaultdict(dict)
        for trial in self.plan.trials:
            spec = trial.spec
            stands = "open" if spec.trial_id in runs else standing(trial.state, self._best(spec.trial_id))
            known[spec.rivals_id][spec.lr] = stands
        ready = [cell for cell in self.plan.cells if not cell.blocked]
        studies = [CellStudy(c, self.plan.sweep.lr_search, known[c.template.rivals_id]) for c in ready]
        return RateSearch(studies, self._take_up, self.progress.say)

    def _source(self, specs: dict[str, TrialSpec]) -> TrialQueue:
        """What gives Tune its trials."""
        from cryobench.orchestrator.sweep.trial_queue import TrialQueue

        if self._search is None:
            return TrialQueue(specs, lambda: self._leaving)
        from cryobench.orchestrator.sweep.rate_search import RateSearcher

        return RateSearcher(self._search, list(specs.values()), self._best, lambda: self._leaving)

    def _best(self, trial: str) -> float | None:
        from cryobench.orchestrator.sweep.early_stopping import scores_in

        return max((score["val_miou"] for score in scores_in(self.where.storage, trial)), default=None)

    def _take_up(self, spec: TrialSpec) -> None:
        """A trial was suggested: on disk first, so that a driver that is killed now does not ask for another instead.

        Raises:
            CryobenchError: it could not be written.
        """
        storage, trial = self.where.storage, spec.trial_id
        record_suggestion(storage, self.plan.sweep.name, spec, self._to_suggest() - 1)
        record = record_sweep(storage, self.plan.sweep, [trial])
        if self.mirror:
            self.mirror.push_projections(storage)
        self._specs[trial] = spec
        self.progress.add(spec)
        self.observer.add(trial)
        self.reconciler.follow(record)


def _out_of_memory(running: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"A node ran out of memory, the last time with {running} trials at a time. Lower resources.max_concurrent or "
        "use larger nodes, then run the same command again: finished trials are kept, the others continue."
    )
