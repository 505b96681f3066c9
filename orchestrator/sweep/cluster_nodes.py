"""The nodes of the cluster while a sweep runs: who is there, who came, who went."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryobench.orchestrator.sweep.capacity import NodeCapacity, capacity_of
from cryobench.orchestrator.sweep.failure_policy import Node

_ASK_EVERY_S = 2.0


@dataclass
class ClusterNodes:
    """Asks Ray every few seconds at most.

    Args:
        ask: ``ray.nodes``.
        tell: is told of nodes that come and go after the first time.
    """

    ask: Callable[[], list[dict[str, Any]]]
    tell: Callable[[str], None] = lambda text: None
    _alive: dict[str, NodeCapacity] = field(default_factory=dict)
    _addresses: dict[str, tuple[str, int]] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _asked: float | None = None

    def alive(self, *, now: bool = False) -> dict[str, NodeCapacity]:
        """The live nodes by Ray's id; ``now`` asks again whenever it was asked last."""
        if now or self._asked is None or time.monotonic() - self._asked > _ASK_EVERY_S:
            first, self._asked = self._asked is None, time.monotonic()
            answer = {str(node["NodeID"]): node for node in self.ask() if node.get("Alive")}
            found = {node: capacity_of(plain) for node, plain in answer.items()}
            self._addresses = {
                node: (str(plain["NodeManagerAddress"]), int(plain["NodeManagerPort"]))
                for node, plain in answer.items()
            }
            came, went = found.keys() - self._alive.keys(), self._alive.keys() - found.keys()
            self._alive = found
            self._name(came)
            if not first:
                for node in sorted(came):
                    self.tell(f"Node {self.name(node)} joined; {len(found)} nodes now.")
                for node in sorted(went):
                    self.tell(f"Node {self.name(node)} is gone; {len(found)} nodes left.")
        return self._alive

    def is_there(self, node: str) -> bool:
        """Whether a node answers right now: Ray itself takes half a minute to call one dead that is."""
        if node not in self.alive(now=True):
            return False
        try:
            socket.create_connection(self._addresses[node], timeout=3).close()
        except OSError:
            return False
        return True

    def name(self, node: str) -> str:
        """The node's name for people: its host's, with the start of its id where that would not tell it from others."""
        return self._names.get(node, node[:8])

    def node(self, node: str) -> Node:
        """The node with this id."""
        return Node(node, self.name(node))

    def _name(self, nodes: set[str]) -> None:
        for node in nodes:
            name = self._alive[node].name
            taken = {self._alive[other].name for other in self._alive if other != node} | {*self._names.values()}
            self._names[node] = f"{name} ({node[:6]})" if name in taken else name
