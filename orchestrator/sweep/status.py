"""The state of a whole sweep from its trials' folders: counts, rate, expected end, nodes, failures."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from cryobench.orchestrator.sweep.survey import TrialView

STATUS_FORMAT = 1
#: The rate is that of the last hour; of a longer time where fewer trials than this ended in it.
_WINDOW_S, _ENOUGH = 3600.0, 10
#: Nothing ran for so long: what ended before says nothing of the rate now.
_PAUSE_S = 300.0
#: States of trials that are not run any more, or not without being asked for.
_FINISHED = ("completed", "diverged", "pruned")
_LEFT = ("running", "waiting", "expired", "pending", "begun")


@dataclass(frozen=True)
class NodeLoad:
    """A node: trials that run on it, trials that ended on it in the rate's window, and its load in percent."""

    name: str
    running: int
    ended: int
    cpu: float | None
    memory: float | None
    gpu: float | None
    gpu_memory: float | None


@dataclass(frozen=True)
class Failures:
    """Trials that failed alike."""

    kind: str
    message: str
    trials: tuple[str, ...]


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at ``time``; ``per_hour`` trials ended in the last ``window_s`` seconds of work.

    ``expected_end`` is None where nothing runs, or nothing is known of how long it takes. ``to_suggest``: trials that a
    search will still add.
    """

    name: str
    time: float
    total: int
    counts: dict[str, int]
    running: tuple[TrialView, ...]
    expired: tuple[TrialView, ...]
    failures: tuple[Failures, ...]
    nodes: tuple[NodeLoad, ...]
    per_hour: float | None
    window_s: float
    expected_end: float | None
    to_suggest: int = 0

    @property
    def finished(self) -> int:
        """How many trials are done with: they have a result that stands, or were stopped early."""
        return sum(self.counts.get(state, 0) for state in _FINISHED)

    @property
    def left(self) -> int:
        """How many trials run, or are still to be run without being asked for anew."""
        return sum(self.counts.get(state, 0) for state in _LEFT)

    def as_json(self) -> dict[str, Any]:
        """The plain form for ``--json``."""
        return {"format": STATUS_FORMAT, **asdict(self), "finished": self.finished}


def sweep_status(
    name: str, views: Iterable[TrialView], now: float | None = None, *, to_suggest: int = 0
) -> SweepStatus:
    """Put together what `Survey.look` found."""
    now = time.time() if now is None else now
    views = list(views)
    counts = Counter(view.state for view in views)
    running = sorted((view for view in views if view.state == "running"), key=lambda view: (view.host, view.started))
    begun = _stretch_began(views, now)
    per_hour, window = _rate(views, begun, now)
    return SweepStatus(
        name=name,
        time=now,
        total=len(views),
        counts=dict(counts),
        running=tuple(running),
        expired=tuple(view for view in views if view.state == "expired"),
        failures=_failures(views),
        nodes=_nodes(views, now - window),
        per_hour=per_hour,
        window_s=window,
        expected_end=_expected_end(views, to_suggest, per_hour, now) if running else None,
        to_suggest=to_suggest,
    )


def _stretch_began(views: list[TrialView], now: float) -> float:
    """When the present stretch of work began: from there on, some trial was always running."""
    spans = [(view.started, now) for view in views if view.state == "running" and view.started]
    spans += [(view.ended - view.seconds, view.ended) for view in views if view.ended]
    began = now
    for start, end in sorted(spans, key=lambda span: span[1], reverse=True):
        if end < began - _PAUSE_S:
            break
        began = min(began, start)
    return began


def _rate(views: list[TrialView], began: float, now: float) -> tuple[float | None, float]:
    """Trials an hour that got a result, and the seconds over which they were counted."""
    ends = sorted((v.ended for v in views if v.state in _FINISHED and began <= v.ended <= now), reverse=True)
    enough = now - ends[_ENOUGH - 1] if len(ends) >= _ENOUGH else now - began
    window = max(min(_WINDOW_S, now - began), enough)
    counted = sum(end >= now - window for end in ends)
    return (counted / window * 3600 if counted and window > 0 else None), window


def _expected_end(views: list[TrialView], to_suggest: int, per_hour: float | None, now: float) -> float | None:
    """When the last trial ends if all goes on as in the window; before any ended, as the running ones advance."""
    running = [view for view in views if view.state == "running"]
    left = sum(1 - view.done for view in views if view.state in _LEFT) + to_suggest
    if per_hour is None:
        paces = [3600 / (view.seconds_an_epoch * view.epochs) for view in running if view.seconds_an_epoch]
        per_hour = sum(paces) / len(paces) * len(running) if paces else None
    if not per_hour:
        return None
    longest = max((view.seconds_left or 0.0 for view in running), default=0.0)
    return now + max(left / per_hour * 3600, longest)


def _failures(views: list[TrialView]) -> tuple[Failures, ...]:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for view in views:
        if view.state == "failed":
            groups[view.kind or "", view.message or ""].append(view.trial_id)
    found = [Failures(kind, message, tuple(trials)) for (kind, message), trials in groups.items()]
    return tuple(sorted(found, key=lambda group: (-len(group.trials), group.kind)))


def _nodes(views: list[TrialView], since: float) -> tuple[NodeLoad, ...]:
    """Each node that ran a trial of this sweep in the window; its load as its trials last noted it."""
    running: dict[str, list[TrialView]] = defaultdict(list)
    ended: Counter[str] = Counter()
    for view in views:
        if view.state == "running":
            running[view.host].append(view)
        elif view.ended >= since and view.host:
            ended[view.host] += 1
    return tuple(_load(name, running.get(name, []), ended[name]) for name in sorted(running.keys() | ended.keys()))


def _load(name: str, running: list[TrialView], ended: int) -> NodeLoad:
    newest = max((v for v in running if v.load), key=lambda v: v.heard, default=None)
    gpus: dict[str, list[float]] = {"utilization": [], "memory_usage": []}
    for view in running:  # each trial notes the GPUs that are its own
        for key, values in gpus.items():
            values += [v for k, v in view.load.items() if k.startswith("gpu_") and k.endswith(f"{key}_percentage")]
    utilization, memory = (sum(values) / len(values) if values else None for values in gpus.values())
    load = newest.load if newest else {}
    return NodeLoad(
        name=name,
        running=len(running),
        ended=ended,
        cpu=load.get("cpu_utilization_percentage"),
        memory=load.get("system_memory_usage_percentage"),
        gpu=utilization,
        gpu_memory=memory,
    )
