"""Two trials side by side: what was asked for, how training went, and the weights, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from cryobench.workers.record.checkpoint import Checkpoints
from cryobench.workers.record.events import Pruned
from cryobench.workers.record.folder import SPEC, TrialFolder

_METRICS = ("loss", "val_miou", "val_mean_f1", "val_overall_accuracy")


@dataclass(frozen=True)
class EpochPair:
    """An epoch of both trials: metric -> the two values, None where a trial has none."""

    epoch: int
    values: dict[str, tuple[float | None, float | None]]

    @property
    def same(self) -> bool:
        """Whether every metric is the same, bit for bit."""
        return all(a == b for a, b in self.values.values())


@dataclass(frozen=True)
class TensorPair:
    """A tensor of both best checkpoints that differs: elements that do, and by how much at most."""

    name: str
    elements: int
    differing: int
    largest: float


@dataclass(frozen=True)
class Comparison:
    """What two trials have in common, and where they part.

    ``asked``: values of the specs that differ, by their place; ``outcome``: those of the results that must be the same
    wherever a trial runs. ``weights`` is None where one of the trials has no best checkpoint to compare; ``pruned``
    says of each whose weights were removed how to get them again.
    """

    asked: dict[str, tuple[Any, Any]]
    epochs: tuple[EpochPair, ...]
    outcome: dict[str, tuple[Any, Any]]
    tensors: int
    weights: tuple[TensorPair, ...] | None
    pruned: tuple[str, ...] = ()

    @property
    def first_difference(self) -> int | None:
        """The first epoch whose metrics differ."""
        return next((pair.epoch for pair in self.epochs if not pair.same), None)

    @property
    def same(self) -> bool:
        """Whether training, result and weights are the same, bit for bit."""
        return self.first_difference is None and not self.outcome and not self.weights


def compare(first: TrialFolder, second: TrialFolder) -> Comparison:
    """Compare two trials, finished or not.

    Raises:
        ConfigError: one of them is no trial.
    """
    specs = [folder.spec().model_dump(mode="json") for folder in (first, second)]
    results = [folder.result() for folder in (first, second)]
    outcomes = [dict(r.reproducible()) if r else {} for r in results]
    for outcome in outcomes:
        outcome.pop("trial_id", None)
    weights = [_best(folder) for folder in (first, second)]
    pairs = None if None in weights else tuple(_tensors(*weights))  # type: ignore[arg-type]
    return Comparison(
        asked=dict(_differences(*specs)),
        epochs=tuple(_epochs(first, second)),
        outcome=dict(_differences(*outcomes)) if all(results) else {},
        tensors=len(weights[0]) if weights[0] else 0,
        weights=pairs,
        pruned=tuple(why for folder in (first, second) if (why := pruned(folder))) if pairs is None else (),
    )


def pruned(folder: TrialFolder) -> str | None:
    """That a trial's best weights were pruned, and how to get them again; None where they were not."""
    last = next((event for event in reversed(folder.events()) if isinstance(event, Pruned)), None)
    if last is None or (folder.path / last.file).exists():
        return None
    day = datetime.fromtimestamp(last.time, UTC).date().isoformat()
    return (
        f"The best weights of trial {folder.trial_id} were pruned on {day} (cryobench prune). Its result stands. To "
        f"get them again, run it anew on another storage: cryobench trial run {folder.path / SPEC} --storage ELSEWHERE."
    )


def _epochs(first: TrialFolder, second: TrialFolder) -> Iterator[EpochPair]:
    a, b = ({event.epoch: event.values() for event in folder.epochs()} for folder in (first, second))
    for epoch in sorted(a.keys() | b.keys()):
        one, other = a.get(epoch, {}), b.get(epoch, {})
        names = [name for name in _METRICS if name in one or name in other]
        yield EpochPair(epoch, {name: (one.get(name), other.get(name)) for name in names})


def _best(folder: TrialFolder) -> dict[str, Tensor] | None:
    try:
        return Checkpoints(folder.path).best()
    except (OSError, ValueError, KeyError):
        return None


def _tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> Iterator[TensorPair]:
    for name in sorted(first.keys() | second.keys()):
        a, b = first.get(name), second.get(name)
        if a is None or b is None or a.shape != b.shape:
            count = max(t.numel() for t in (a, b) if t is not None)
            yield TensorPair(name, count, count, float("inf"))
        elif not torch.equal(a, b):
            apart = (a.double() - b.double()).abs()
            yield TensorPair(name, a.numel(), int((a != b).sum()), float(apart.max()))


def _differences(first: Any, second: Any, *, at: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            yield from _differences(first.get(key), second.get(key), at=f"{at}.{key}" if at else str(key))
    elif first != second:
        yield at, (first, second)
