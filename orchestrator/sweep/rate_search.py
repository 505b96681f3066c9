"""Learning rates that are suggested from what others reached: one study of Optuna's a cell, through Ray Tune.

A cell is an encoder on a data set in a regime. Its study learns from every trial of the cell that has ended, whatever
sweep or driver ran it, and its sampler is seeded by the cell itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cryobench.conf.errors import CryobenchError, MissingLibraryError
from cryobench.conf.schema import LrSearchSpec
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.sweep.suggestions import SearchCell
from cryobench.orchestrator.sweep.trial_queue import TrialQueue

#: So many trials of a cell run at a time at most: a rate that is suggested before they end learns nothing from them.
#: As many rates are drawn at random before the sampler (a tree of Parzen estimators) goes by what was reached.
_AT_A_TIME = 3
#: A cell whose sampler offers so many rates in a row that the cell has already is at its end.
_TRIES = 100

#: How a trial stands for a study: its best validation mIoU, ``failed``, or still without an end.
Standing = float | Literal["failed", "open"]


def require_optuna() -> None:
    """Raise MissingLibraryError unless Optuna is installed."""
    try:
        import optuna
    except ImportError as error:
        raise MissingLibraryError("search=optuna needs the Optuna library: pip install 'cryobench[search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def standing(status: str, best: float | None) -> Standing:
    """What a study is told of a trial that ended.

    A trial that diverged before it was validated reached nothing: 0. Of one that failed, or was stopped before it was
    validated, nothing is known.
    """
    if status == "diverged":
        return best or 0.0
    return best if status in ("completed", "pruned") and best is not None else "failed"


@dataclass
class CellStudy:
    """The study of one cell.

    Args:
        cell: the cell, with the rates that were suggested before.
        search: the range and the number of rates.
        known: by rate, how each trial of the cell stands.
    """

    cell: SearchCell
    search: LrSearchSpec
    known: dict[float, Standing]
    _left: int = field(init=False)
    _asked: dict[float, str] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        self._left = self.cell.left(self.search.samples)
        self._low, self._high = min(self.search.lr), max(self.search.lr)
        told = {lr: value for lr, value in self.known.items() if isinstance(value, float) and self._in_range(lr)}
        seed = int(self.cell.template.rivals_id[:8], 16)
        logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)
        self._study = OptunaSearch(
            space={"lr": optuna.distributions.FloatDistribution(self._low, self._high, log=True)},
            metric="val_miou",
            mode="max",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_AT_A_TIME),
            points_to_evaluate=[{"lr": lr} for lr in told],
            evaluated_rewards=list(told.values()),
        )
        for lr, value in self.known.items():
            if value == "failed":
                self._tell_apart(lr, value)

    @property
    def left(self) -> int:
        """How many rates it will still suggest."""
        return self._left

    @property
    def waits(self) -> bool:
        """Whether enough of its trials run for now."""
        return sum(value == "open" for value in self.known.values()) >= _AT_A_TIME

    def suggest(self) -> float | None:
        """A rate that the cell has not, of three significant digits; None where there seems to be none, for good."""
        for _ in range(_TRIES):
            self._count += 1
            name = str(self._count)
            drawn = self._study.suggest(name)["lr"]
            rate = min(max(float(f"{drawn:.2e}"), self._low), self._high)
            if rate not in self.known:
                self.known[rate], self._asked[rate] = "open", name
                self._left -= 1
                return rate
            self._study.on_trial_complete(name, error=True)  # not this one; the sampler goes on to another
        self._left = 0
        return None

    def tell(self, rate: float, value: Standing) -> None:
        """How a trial of the cell stands now."""
        self.known[rate] = value
        if value == "open":
            return
        name = self._asked.pop(rate, None)
        if name is None:
            self._tell_apart(rate, value)
        elif value == "failed":
            self._study.on_trial_complete(name, error=True)
        else:
            self._study.on_trial_complete(name, result={"val_miou": value})

    def _tell_apart(self, rate: float, value: Standing) -> None:
        """Of a trial that this study did not suggest itself."""
        if self._in_range(rate):
            failed = value == "failed"
            self._study.add_evaluated_point({"lr": rate}, 0.0 if failed else value, error=failed)

    def _in_range(self, rate: float) -> bool:
        return self._low <= rate <= self._high


class RateSearch:
    """The studies of a sweep's cells, asked in turn.

    Args:
        studies: one a cell.
        take_up: is given each new trial before anybody runs it, to record and announce it; where it raises a
            CryobenchError the trial is not handed out, and tried again later.
        tell: shows the user what kept a trial from being recorded, once.
    """

    def __init__(
        self, studies: Iterable[CellStudy], take_up: Callable[[TrialSpec], None], tell: Callable[[str], None]
    ) -> None:
        self._studies = list(studies)
        self._of = {study.cell.template.rivals_id: study for study in self._studies}
        self._take_up, self._tell = take_up, tell
        self._not_recorded: TrialSpec | None = None
        self._told: set[str] = set()

    @property
    def left(self) -> int:
        """How many trials are still to be suggested."""
        return sum(study.left for study in self._studies) + (self._not_recorded is not None)

    def next(self) -> TrialSpec | None:
        """A new trial, recorded; None while there is none to be had."""
        spec = self._not_recorded or self._suggested()
        if spec is None:
            return None
        self._not_recorded = spec
        try:
            self._take_up(spec)
        except CryobenchError as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                self._tell(f"A suggested trial could not be recorded and is not run before it is: {error}")
            return None
        self._not_recorded = None
        return spec

    def tell(self, spec: TrialSpec, value: Standing) -> None:
        """How a trial of the sweep stands now; one that is in no searched cell is of no interest."""
        study = self._of.get(spec.rivals_id)
        if study is not None:
            study.tell(spec.lr, value)

    def _suggested(self) -> TrialSpec | None:
        for study in list(self._studies):
            if study.left and not study.waits:
                rate = study.suggest()
                if rate is None:
                    label = study.cell.template.label.partition(" · lr")[0]
                    self._tell(f"{label}: no further learning rate is left between those that were tried.")
                    continue
                self._studies.append(self._studies.pop(self._studies.index(study)))  # the others come first now
                return study.cell.template.model_copy(update={"lr": rate})
        return None


class RateSearcher(TrialQueue):
    """Gives Tune the trials that were asked for by number, then those that a `RateSearch` suggests.

    Args:
        search: the search.
        asked: the trials that are there already, in the order in which they are to be run.
        best: the best validation mIoU in a trial's folder.
        leaving: whether nothing new is to begin any more.
    """

    def __init__(
        self,
        search: RateSearch,
        asked: Sequence[TrialSpec],
        best: Callable[[str], float | None],
        leaving: Callable[[], bool],
    ) -> None:
        super().__init__((spec.trial_id for spec in asked), leaving)
        self._search, self._best_of = search, best
        self._specs = {spec.trial_id: spec for spec in asked}
        self._running: dict[str, TrialSpec] = {}
        self._best: dict[str, float | None] = {}
        for spec in asked:
            search.tell(spec, "open")

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """What Tune runs next as ``trial_id``: the trial's name and, since workers know only the first, its spec."""
        asked = super().suggest(trial_id)
        if isinstance(asked, dict):
            spec = self._specs[asked["trial"]]
        elif self._leaving():
            return asked
        else:
            suggested = self._search.next()
            if suggested is None:
                return None if self._search.left else asked
            spec = suggested
        self._running[trial_id] = spec
        self._best[trial_id] = self._best_of(spec.trial_id)
        return {"trial": spec.trial_id, "spec": spec.model_dump_json()}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keep the best validation."""
        scores = [score["val_miou"] for score in result.get("validated", ())]
        before = self._best[trial_id]
        self._best[trial_id] = max(scores if before is None else [before, *scores], default=None)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended; one that could not even begin is taken up by the next round of Tune's."""
        spec = self._running.pop(trial_id, None)
        if spec is None or self._leaving():
            return
        if result:
            self.on_trial_result(trial_id, result)
        ends = [event["status"] for event in (result or {}).get("events", ()) if event["event"] == "ended"]
        status = ends[-1] if ends else "failed"
        self._search.tell(spec, standing(status, self._best.pop(trial_id)))
