"""Where trials may run: what each asks of a node, decided when Tune takes it up, from the nodes that are there then."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from cryobench.conf.schema import ResourceSpec
from cryobench.orchestrator.sweep.capacity import gpus_for_trial
from cryobench.orchestrator.sweep.cluster_nodes import ClusterNodes
from cryobench.orchestrator.sweep.failure_policy import FailurePolicy
from cryobench.orchestrator.sweep.gpu_share import GpuShares

#: The label by which Ray 2.60 knows a node.
_NODE_ID = "ray.io/node-id"


@dataclass
class Placement:
    """The request of each trial: processors, GPUs, and the nodes that it must not get."""

    resources: ResourceSpec
    nodes: ClusterNodes
    policy: FailurePolicy
    shares: GpuShares
    _kept_from: dict[str, frozenset[str]] = field(default_factory=dict)

    def needs(self) -> tuple[float, float]:
        """Processors and GPUs of a trial of which nothing is known, on the nodes that are there now."""
        gpus = gpus_for_trial(self.resources.gpus_per_trial, self.nodes.alive().values())
        return self.resources.cpus_per_trial, gpus

    def at_a_time(self) -> int:
        """How many trials the nodes hold at a time."""
        cpus, gpus = self.needs()
        fit = [min(node.cpus / cpus, node.gpus / gpus if gpus else math.inf) for node in self.nodes.alive().values()]
        return max(1, sum(int(number) for number in fit))

    def request(self, trial: str, *, anywhere: bool = False) -> tune.PlacementGroupFactory:
        """What ``trial`` asks for now; ``anywhere`` on any node, however sick."""
        nodes, (_, gpus) = self.nodes.alive(), self.needs()
        if self.resources.gpus_per_trial == "auto" and gpus == 1:
            gpus = self.shares.of(trial)
        bundle: dict[str, float] = {"CPU": self.resources.cpus_per_trial}
        if gpus:
            bundle["GPU"] = gpus
        avoid = (self._kept_from.get(trial, frozenset()) | self.policy.avoided.keys()) & nodes.keys()
        if anywhere or not avoid:
            return tune.PlacementGroupFactory([bundle])
        selector = {_NODE_ID: f"!in({','.join(sorted(avoid))})"}
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=[selector])

    def keep_from(self, trial: str, nodes: Collection[str]) -> None:
        """From now on ``trial`` gets none of these nodes."""
        self._kept_from[trial] = frozenset(nodes)


def placing(scheduler: type[Any] = FIFOScheduler) -> type[Any]:
    """A scheduler of Tune's that asks a `Placement` what each trial needs when it comes up.

    Tune takes trials up a few at a time; what is asked then is right for the nodes, measured memory and sick nodes of
    that moment, where a request given for all trials at the start would be that of the start.
    """

    class Placing(scheduler):
        def __init__(self, placement: Placement, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._placement = placement
            self._number: dict[str, int] = {}
            self._waited: set[str] = set()

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return scheduler, ()  # Tune pickles it with its state, to restore from; we restore from the folders

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            trial.update_resources(self._placement.request(trial.config["trial"]))
            self._number[trial.trial_id] = len(self._number)
            super().on_trial_add(tune_controller, trial)

        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            """Of the trials that wait, one that has just come up: it gets the worker that has just become free.

            For one that has waited, Tune is starting a worker, which it would end when it gave it another: with trials
            that are shorter than a worker's start, one worker would run them all and the second never come up.
            """
            live = sorted(tune_controller.get_live_trials(), key=lambda trial: self._number[trial.trial_id])
            waiting = [trial for trial in live if trial.status == Trial.PENDING]
            new = [trial for trial in waiting if trial.trial_id not in self._waited]
            self._waited = {trial.trial_id for trial in waiting}
            return next(iter([*new, *waiting]), None)  # none is ever paused

    return Placing
