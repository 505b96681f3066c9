"""In which order the trials of a sweep are run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.sweep.trial_maker import PlannedTrial


def in_order(trials: Sequence[PlannedTrial], seconds: Callable[[TrialSpec], float]) -> list[PlannedTrial]:
    """``trials`` as they are best handed out, one after the other, to whatever is free.

    Those of one data set and system follow each other, so that a node's cache and a worker's libraries serve
    neighbours. Groups with the longest trials come first, and in them the longest trials: what is left at the end is
    short, and no node waits long for the last. Ties keep the plan's order.

    Args:
        trials: the trials.
        seconds: how long each takes, at least beside the others; of one that was begun, all of it.
    """
    groups: dict[tuple[str, str], list[tuple[float, PlannedTrial]]] = defaultdict(list)
    for trial in trials:
        spec = trial.spec
        left = seconds(spec) * (1 - trial.epoch / spec.protocol.epochs)
        groups[spec.dataset.name, spec.encoder.name].append((left, trial))
    for group in groups.values():
        group.sort(key=lambda pair: -pair[0])
    longest_first = sorted(groups.values(), key=lambda group: -group[0][0])
    return [trial for group in longest_first for _, trial in group]
