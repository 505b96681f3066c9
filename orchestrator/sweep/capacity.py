"""Whether a trial fits: what it asks for against what the nodes of a cluster have. Nothing here asks Ray.

A trial runs on one node, so what counts is the node that suits it best, never the cluster's sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cryobench.conf.errors import ConfigError


@dataclass(frozen=True)
class NodeCapacity:
    """A live node: its name or address, and all that it has, in use or not."""

    name: str
    cpus: float
    gpus: float


def capacity_of(node: Mapping[str, Any]) -> NodeCapacity:
    """One of ``ray.nodes()``."""
    return NodeCapacity(
        name=str(node.get("NodeName") or node.get("NodeManagerAddress") or "without a name"),
        cpus=float(node.get("Resources", {}).get("CPU", 0)),
        gpus=float(node.get("Resources", {}).get("GPU", 0)),
    )


def live_nodes(nodes: Iterable[Mapping[str, Any]]) -> list[NodeCapacity]:
    """The live ones among ``ray.nodes()``."""
    return [capacity_of(node) for node in nodes if node.get("Alive")]


def gpus_for_trial(asked: float | Literal["auto"], nodes: Iterable[NodeCapacity]) -> float:
    """``resources.gpus_per_trial`` as a number; ``auto`` is one GPU where any node has one, else none."""
    if asked != "auto":
        return asked
    return 1 if any(node.gpus >= 1 for node in nodes) else 0


def device_for_trial(gpus: float) -> str:
    """The torch device of a trial that was given ``gpus``.

    Without a GPU of its own it is ``cpu`` by name: Ray leaves all GPUs of the node visible to such a trial, and one
    that looks for itself would take them from the others. With one it is ``cuda`` by name: on a node whose driver is
    broken the trial fails and says so, where looking for itself it would train on the CPU for days.
    """
    return "cuda" if gpus else "cpu"


def require_fit(nodes: Iterable[NodeCapacity], cpus: float, gpus: float) -> None:
    """Raise unless some node could hold a trial; Ray would wait for ever for such a node to come.

    Raises:
        ConfigError: no node could; names the one that comes nearest.
    """
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(
            f"resources.gpus_per_trial={gpus:g}: expected a part of one GPU, such as 0.5, or a whole number of them."
        )
    alive = list(nodes)
    if not alive:
        raise ConfigError("The Ray cluster has no live node. Start one with: ray start --address HOST:6379.")

    def lacks(node: NodeCapacity) -> list[str]:
        wanted = (("cpus_per_trial", cpus, node.cpus), ("gpus_per_trial", gpus, node.gpus))
        return [f"resources.{name}" for name, asked, has in wanted if asked > has]

    largest = min(alive, key=lambda node: (len(lacks(node)), -node.gpus if gpus else 0, -node.cpus))
    if lacks(largest):
        raise ConfigError(
            f"A trial asks for {cpus:g} CPU and {gpus:g} GPU and must fit on one node; the largest of "
            f"{len(alive)}, {largest.name}, has {largest.cpus:g} CPU and {largest.gpus:g} GPU. Lower "
            f"{' and '.join(lacks(largest))}, or add a larger node."
        )
