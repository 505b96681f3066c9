"""What is done about a failure: one table from its kind to its treatment, and the counts that the table asks for.

Nothing here knows Ray or files: it is told what failed where, and answers whether the trial goes on and where not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

#: Kinds that only a sweep's driver tells apart; those of trials are in `cryobench.conf.errors`.
LOST_NODE, PREEMPTED, LOW_MEMORY, CRASHED, AVOIDED = "lost_node", "preempted", "low_memory", "crashed", "avoided_node"
#: What Ray says when it ends a worker because its node runs out of memory.
LOW_MEMORY_WORDS = "running low on memory"


@dataclass(frozen=True)
class Treatment:
    """What a kind of failure is answered with.

    ``retry``: ``never`` (recorded); ``elsewhere`` (once, on another node: if it comes again there it is no node's
    fault); ``counted`` (until `resources.crash_retries` are used up); ``always`` (nobody's fault, never counted).
    ``avoid_after``: so many of these, of different trials and with nothing finished in between, and the node gets no
    more trials; 0 is never. ``even_the_last``: also if no other node is left, which ends the sweep, since all of it
    would fail like this. ``means`` and ``remedy`` are for people.
    """

    retry: Literal["never", "elsewhere", "counted", "always"]
    means: str
    remedy: str
    avoid_after: int = 0
    even_the_last: bool = False


_OF_THE_TRIAL = "Remove the reason, then add --retry-failed."
_OF_THE_NODE = "Mend the node, then run the same command again."

TREATMENTS: Mapping[str, Treatment] = {
    # of the trial: another attempt would fail the same way
    "invalid_config": Treatment("never", "a value that cannot be used", _OF_THE_TRIAL),
    "not_built": Treatment("never", "an encoder or data set that is not part of this release", _OF_THE_TRIAL),
    "missing_library": Treatment("never", "a library that is not installed", _OF_THE_TRIAL),
    "corrupt_data": Treatment("never", "stored tiles that are not what was written", _OF_THE_TRIAL),
    "bad_data": Treatment("never", "data that are not as their layout promises", _OF_THE_TRIAL),
    "bad_checkpoint": Treatment("never", "published weights that do not fit", _OF_THE_TRIAL),
    "bad_record": Treatment("never", "a damaged file in the trial's folder", _OF_THE_TRIAL),
    "error": Treatment("never", "another explained error", _OF_THE_TRIAL),
    # of memory on the device: the attempt itself has tried alone, and in parts
    "out_of_memory": Treatment("never", "too large for its device, alone and in parts", "Use a larger device."),
    # of the node
    "disk_full": Treatment("elsewhere", "no space left", _OF_THE_NODE, 2, even_the_last=True),
    "missing_data": Treatment("elsewhere", "tiles that the node does not see", _OF_THE_NODE, 2),
    "missing_weights": Treatment("elsewhere", "weights that the node does not see", _OF_THE_NODE, 2),
    "missing_mount": Treatment(
        "elsewhere", "another storage on the node", _OF_THE_NODE, avoid_after=1, even_the_last=True
    ),
    "hung_read": Treatment("elsewhere", "reads that do not come back", _OF_THE_NODE, 2),
    "gpu_fault": Treatment("elsewhere", "a GPU that fails or is gone", _OF_THE_NODE, 2, even_the_last=True),
    "storage": Treatment(
        "elsewhere", "a storage that cannot be reached", _OF_THE_NODE, avoid_after=2, even_the_last=True
    ),
    "other_software": Treatment(
        "elsewhere", "other software than the driver's", _OF_THE_NODE, avoid_after=1, even_the_last=True
    ),
    LOW_MEMORY: Treatment("counted", "a worker ended because its node ran low on memory", _OF_THE_NODE),
    # nobody's
    LOST_NODE: Treatment("always", "a node that is gone", "Run the same command again."),
    PREEMPTED: Treatment("always", "a machine that was taken away", "Run the same command again."),
    "interrupted": Treatment("always", "a trial that was asked to leave", "Run the same command again."),
    "lease_lost": Treatment("always", "a trial that another worker took over", "Run the same command again."),
    "busy": Treatment("always", "a trial that another sweep is running", "Run the same command again."),
    AVOIDED: Treatment("always", "a node that gets no more trials", "Run the same command again."),
    # unexplained
    CRASHED: Treatment("counted", "a worker that died or raised", "Run the same command again.", 3),
}


def treatment(kind: str) -> Treatment:
    """The treatment of a kind; one that this release does not know is the trial's."""
    return TREATMENTS.get(kind, TREATMENTS["error"])


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, by Ray's id and by a name for people."""

    id: str
    name: str


@dataclass(frozen=True)
class Verdict:
    """Whether a trial goes on; ``avoid`` are the nodes on which it should not; ``why`` says it to people.

    ``condemned`` is a node that gets no more trials from now on.
    """

    goes_on: bool
    why: str
    avoid: frozenset[str] = frozenset()
    condemned: Node | None = None


@dataclass
class FailurePolicy:
    """Keeps the counts; one a sweep.

    Args:
        crash_retries: how often a trial is tried again after failures that are counted.
        alive: the ids of the nodes that are there now.
    """

    crash_retries: int
    alive: Callable[[], Collection[str]]
    avoided: dict[str, str] = field(default_factory=dict)
    _counted: Counter[str] = field(default_factory=Counter)
    _met: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    _failures_on: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))

    def judge(self, trial: str, kind: str, node: Node | None, message: str = "") -> Verdict:
        """What becomes of a trial that failed on ``node`` (None if that is not known)."""
        rule = treatment(kind)
        where = f" on {node.name}" if node else ""
        condemned = self._blame(trial, kind, node, rule, message)
        if node:
            self._met[trial].append((kind, node.id))
        if rule.retry == "always":
            avoid = self._avoid_for(trial)
            return Verdict(True, f"{rule.means}{where}; going on from the last checkpoint", avoid, condemned)
        if rule.retry == "counted":
            self._counted[trial] += 1
            times = self._counted[trial]
            goes_on = times <= self.crash_retries and bool(self.usable())
            then = "going on from the last checkpoint" if goes_on else "not tried again"
            avoid = self._avoid_for(trial)
            why = f"{message or rule.means}{where}, time {times} of {self.crash_retries + 1}; {then}"
            return Verdict(goes_on, why, avoid, condemned)
        if rule.retry == "elsewhere":
            known = {met_on for met, met_on in self._met[trial] if met == kind}
            if len(known) > 1 and not rule.even_the_last:
                self._acquit(trial, kind)
            goes_on = node is not None and len(known) == 1 and bool(self.usable() - known)
            then = "tried on another node" if goes_on else "not tried again"
            return Verdict(goes_on, f"{rule.means}{where}; {then}", self._avoid_for(trial) | known, condemned)
        return Verdict(False, f"{rule.means}{where}", condemned=condemned)

    def finished_on(self, node: Node) -> None:
        """A trial ended well there: what failed before was not the node's fault."""
        self._failures_on.pop(node.id, None)

    def failures_of(self, trial: str) -> int:
        """How many failures were counted against a trial."""
        return self._counted[trial]

    def avoid(self, node: Node, why: str) -> None:
        """Give ``node`` no more trials."""
        self.avoided.setdefault(node.id, f"{node.name}: {why}")

    def usable(self) -> set[str]:
        """The nodes that are there and are not avoided."""
        return set(self.alive()) - self.avoided.keys()

    def _blame(self, trial: str, kind: str, node: Node | None, rule: Treatment, message: str) -> Node | None:
        if node is None or not rule.avoid_after or node.id in self.avoided:
            return None
        failures = self._failures_on[node.id]
        if (trial, kind) not in failures:
            failures.append((trial, kind))
        if sum(found == kind for _, found in failures) < rule.avoid_after:
            return None
        if not (rule.even_the_last or self.usable() - {node.id}):
            return None
        self.avoid(node, message or rule.means)
        return node

    def _acquit(self, trial: str, kind: str) -> None:
        """A trial that fails alike on two nodes says nothing about either."""
        for failures in self._failures_on.values():
            if (trial, kind) in failures:
                failures.remove((trial, kind))

    def _avoid_for(self, trial: str) -> frozenset[str]:
        """Nodes that failed this trial; none if that would leave no node."""
        rules = {node for kind, node in self._met[trial] if treatment(kind).retry == "elsewhere"}
        return frozenset(rules) if self.usable() - rules else frozenset()
