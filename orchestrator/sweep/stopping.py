"""When a sweep cannot go on: no node is left that it may use. Waiting for ever would look like running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.stopper import NoopStopper

from cryobench.conf.errors import ConfigError
from cryobench.orchestrator.sweep.capacity import require_fit
from cryobench.orchestrator.sweep.cluster_nodes import ClusterNodes
from cryobench.orchestrator.sweep.failure_policy import FailurePolicy


@dataclass(repr=False)  # Tune writes it into its own state, and of thousands of trials that takes seconds
class NoNodeLeft(tune.Stopper):
    """Stops Tune once every node is avoided and nothing runs any more; says when it waits for a node to come.

    Args:
        nodes: of the cluster.
        policy: which of them are avoided.
        running: the trials that run now.
        needs: processors and GPUs that a trial asks for.
        say: prints a line.
    """

    nodes: ClusterNodes
    policy: FailurePolicy
    running: Callable[[], set[str]]
    needs: Callable[[], tuple[float, float]]
    say: Callable[[str], None]
    reason: str | None = None
    _waiting: bool = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles it with its state, to restore from; the folders are what we restore from."""
        return NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped."""
        return False

    def stop_all(self) -> bool:
        """Whether nothing can run any more."""
        alive = self.nodes.alive()
        usable = self.policy.usable()
        if alive and not usable and not self.running():
            causes = "; ".join(sorted(self.policy.avoided.values()))
            self.reason = f"No node is left that the sweep may use ({causes})."
            return True
        try:
            require_fit([alive[node] for node in usable], *self.needs())
            self._waiting = False
        except ConfigError as error:
            if not self._waiting and not self.running():
                self._waiting = True
                self.say(f"Waiting for a node on which a trial fits. {error}")
        return False
