"""Which trials are not worth training to their end: decided by Ray Tune's own schedulers, done by the workers.

Those compete that differ in the learning rate alone. A scheduler of Tune's hears each validation once, by its epoch;
where it would stop a trial, the worker that runs it is told to save and leave it. Tune itself never stops one: a
function that is ended from outside saves nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from cryobench.conf.schema import ProtocolSpec
from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.folder import TrialFolder

#: Nothing is stopped in this part of its epochs, nor before it was validated once.
_GRACE_PART = 8
#: asha: of the trials that came to a rung, one in so many goes on beyond it.
_REDUCTION = 3
#: median: a trial is compared with at least so many others.
_OTHERS = 2

Score = dict[str, float]


def grace_period(protocol: ProtocolSpec) -> int:
    """The epoch of the first validation that may stop a trial: the first at or after an eighth of all epochs."""
    first = -(-protocol.epochs // _GRACE_PART)
    return min(protocol.epochs, -(-first // protocol.eval_every) * protocol.eval_every)


def scores_in(storage: Path, trial: str) -> list[Score]:
    """The validations in a trial's folder, as `Reporter` sends them."""
    epochs = TrialFolder(storage, trial).epochs()
    return [{"epoch": e.epoch, "val_miou": e.val_miou} for e in epochs if e.val_miou is not None]


@dataclass(frozen=True)
class _Former:
    """Stands for a trial that ended before: of a trial its schedulers know the id alone."""

    trial_id: str


class _NobodyWaits:
    """In place of Tune's controller: nothing is paused for trials that wait, so there are none to be seen."""

    def get_live_trials(self) -> list[Any]:
        return []


@dataclass
class _Rivals:
    """Trials that differ in their rate alone, and what judges them; ``heard`` is the last epoch of each."""

    rule: TrialScheduler
    heard: dict[str, int] = field(default_factory=dict)

    def replay(self, trial: Any, name: str, scores: list[Score]) -> None:
        """Take in what was found before, without judging: what a scheduler hears of a trial that is complete."""
        for score in scores:
            self.rule.on_trial_add(_NobodyWaits(), trial)
            self.rule.on_trial_complete(_NobodyWaits(), trial, dict(score))
            self.heard[name] = int(score["epoch"])
        self.heard.setdefault(name, 0)

    def stops(self, trial: Any, name: str, score: Score) -> bool:
        """Whether a trial is to be stopped after one more validation; one that was heard before is not judged again."""
        if score["epoch"] <= self.heard[name]:
            return False
        self.heard[name] = int(score["epoch"])
        return bool(self.rule.on_trial_result(_NobodyWaits(), trial, dict(score)) == TrialScheduler.STOP)


@dataclass
class EarlyStops:
    """The rivals of a sweep and the trials that were given up.

    Args:
        scheduler: which of Tune's judges.
        specs: the trials that run now, also those that come later.
        former: the other trials of the sweep, whose results count as well.
        scores: the validations in a trial's folder.
        prune: tells the trial's worker (trial, why).
        exempt: trials that are trained to their end whatever they reach.
    """

    scheduler: Literal["asha", "median"]
    specs: Mapping[str, TrialSpec]
    former: Mapping[str, TrialSpec]
    scores: Callable[[str], list[Score]]
    prune: Callable[[str, str], object]
    exempt: Collection[str] = ()
    _groups: dict[str, _Rivals] = field(default_factory=dict)
    _rivals_of: dict[str, _Rivals] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._former_of: dict[str, list[str]] = defaultdict(list)
        for name, spec in self.former.items():
            self._former_of[spec.rivals_id].append(name)

    def add(self, trial: Any) -> None:
        """A trial of Tune's comes up, perhaps once more after an attempt that failed."""
        name = trial.config["trial"]
        if name not in self._rivals_of:
            rivals = self._rivals_of[name] = self._group(self.specs[name])
            rivals.replay(trial, name, self.scores(name))
            rivals.rule.on_trial_add(_NobodyWaits(), trial)

    def hear(self, trial: Any, result: Mapping[str, Any]) -> None:
        """A trial reported; after its last epoch, or once something was decided, nothing is decided any more."""
        name = trial.config["trial"]
        if name in self._settled or name in self.exempt:
            return
        for score in result.get("validated", ()):
            if self._rivals_of[name].stops(trial, name, score):
                self._settled.add(name)
                if result["training_iteration"] < self.specs[name].protocol.epochs:
                    found = f"validation mIoU {score['val_miou']:.2f} at epoch {score['epoch']:.0f}"
                    self.prune(name, f"{self.scheduler}: {found} is behind other learning rates")
                return

    def _group(self, spec: TrialSpec) -> _Rivals:
        key = spec.rivals_id
        if key not in self._groups:
            rivals = self._groups[key] = _Rivals(_rule(self.scheduler, spec.protocol))
            for name in self._former_of[key]:
                rivals.replay(_Former(name), name, self.scores(name))
        return self._groups[key]


class EarlyStopping(FIFOScheduler):
    """Tune's own order of trials; what their reports say of them is passed on to `EarlyStops`."""

    def __init__(self, stops: EarlyStops) -> None:
        super().__init__()
        self._stops = stops

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """See `EarlyStops.add`."""
        self._stops.add(trial)
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See `EarlyStops.hear`; the trial goes on until its worker leaves it."""
        self._stops.hear(trial, result)
        return str(super().on_trial_result(tune_controller, trial, result))


def _rule(scheduler: Literal["asha", "median"], protocol: ProtocolSpec) -> TrialScheduler:
    by = {"time_attr": "epoch", "metric": "val_miou", "mode": "max", "grace_period": grace_period(protocol)}
    if scheduler == "median":
        return MedianStoppingRule(**by, min_samples_required=_OTHERS)
    # Without stop_last_trials a trial that passed a rung is not held against those that came to it earlier.
    return AsyncHyperBandScheduler(
        **by, max_t=protocol.epochs, reduction_factor=_REDUCTION, brackets=1, stop_last_trials=False
    )
