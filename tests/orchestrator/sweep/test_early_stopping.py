"""Who is stopped early: Tune's own schedulers on trials as Tune has them, told by the epoch of each validation."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from cryobench.conf.schema import ProtocolSpec
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.sweep.early_stopping import EarlyStopping, EarlyStops, Score, grace_period, scores_in
from cryobench.workers.record.events import AttemptStarted, EpochFinished, StoppedEarly
from cryobench.workers.record.folder import TrialFolder

EPOCHS = 27


@dataclass(eq=False)
class TuneTrial:
    """What a scheduler sees of a trial of Tune's."""

    name: str
    trial_id: str = ""
    config: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.trial_id, self.config = f"tune-{self.name}", {"trial": self.name}


class Sweep:
    """A sweep of 27 epochs with validation after each, of one trial a rate; nothing of Ray runs."""

    def __init__(self, spec: TrialSpec, scheduler: Any = "asha", **options: Any) -> None:
        protocol = spec.protocol.model_copy(update={"epochs": EPOCHS, "eval_every": 1})
        self.base = spec.model_copy(update={"protocol": protocol})
        self.specs: dict[str, TrialSpec] = {}
        self.former: dict[str, TrialSpec] = {}
        self.scores: dict[str, list[Score]] = {}
        self.pruned: dict[str, str] = {}
        self.trials: dict[str, TuneTrial] = {}
        self.options = {"scheduler": scheduler, **options}

    @cached_property
    def stops(self) -> EarlyStops:
        return EarlyStops(
            specs=self.specs,
            former=self.former,
            scores=lambda name: self.scores.get(name, []),
            prune=lambda name, why: self.pruned.update({name: why}),
            **self.options,
        )

    @cached_property
    def scheduler(self) -> EarlyStopping:
        return EarlyStopping(self.stops)

    def known(self, name: str, rate: float, scores: dict[int, float], **changes: Any) -> None:
        """A trial that ended before."""
        self.former[name] = self.base.model_copy(update={"lr": rate, **changes})
        self.scores[name] = listed(scores)

    def add(self, name: str, rate: float, scores: dict[int, float] | None = None, **changes: Any) -> None:
        """A trial of this run, with what is in its folder."""
        self.specs[name] = self.base.model_copy(update={"lr": rate, **changes})
        self.scores[name] = listed(scores or {})
        self.trials[name] = TuneTrial(name)
        self.scheduler.on_trial_add(None, self.trials[name])

    def report(self, name: str, epoch: int, **scores: float) -> str:
        """A report up to ``epoch``; ``e3=50.0`` validates epoch 3."""
        validated = listed({int(key[1:]): value for key, value in scores.items()})
        result = {"training_iteration": epoch, "validated": validated, "events": []}
        return self.scheduler.on_trial_result(None, self.trials[name], result)


def listed(scores: dict[int, float]) -> list[Score]:
    return [{"epoch": epoch, "val_miou": value} for epoch, value in scores.items()]


@pytest.fixture
def spec(one_trial: Any) -> TrialSpec:
    found: TrialSpec = one_trial()
    return found


@pytest.mark.parametrize(
    ("epochs", "every", "grace"),
    [(80, 5, 10), (8, 2, 2), (27, 1, 4), (3, 5, 3), (1, 1, 1), (40, 4, 8), (100, 7, 14)],
)
def test_grace_is_the_first_validation_after_an_eighth(epochs: int, every: int, grace: int) -> None:
    assert grace_period(ProtocolSpec(epochs=epochs, eval_every=every)) == grace


def test_the_worst_of_a_rung_is_told_to_stop_and_tune_to_go_on(spec: TrialSpec) -> None:
    sweep = Sweep(spec)
    for name, rate in (("a", 1e-3), ("b", 1e-4), ("c", 1e-5)):
        sweep.add(name, rate)
    assert sweep.report("a", 3, e1=10.0, e2=20.0, e3=30.0) == TrialScheduler.CONTINUE
    assert sweep.report("b", 3, e1=1.0, e2=2.0, e3=3.0) == TrialScheduler.CONTINUE  # within the grace period
    assert not sweep.pruned
    assert sweep.report("a", 4, e4=40.0) == TrialScheduler.CONTINUE
    assert sweep.report("b", 4, e4=50.0) == TrialScheduler.CONTINUE
    assert sweep.report("c", 4, e4=5.0) == TrialScheduler.CONTINUE
    assert sweep.pruned == {"c": "asha: validation mIoU 5.00 at epoch 4 is behind other learning rates"}
    assert sweep.report("c", 6, e5=0.0, e6=0.0) == TrialScheduler.CONTINUE  # until its worker has heard of it
    assert len(sweep.pruned) == 1


def test_median_stops_what_was_never_as_good_as_the_others_on_average(spec: TrialSpec) -> None:
    sweep = Sweep(spec, "median")
    for name in "abc":
        sweep.add(name, 10.0 ** -"abc".index(name))
    for epoch in range(1, 8):
        for name, score in (("a", 60.0), ("b", 70.0)):
            assert sweep.report(name, epoch, **{f"e{epoch}": score}) == TrialScheduler.CONTINUE
    sweep.report("c", 3, e1=9.0, e2=9.0, e3=9.0)
    assert not sweep.pruned
    assert sweep.report("c", 4, e4=9.0) == TrialScheduler.CONTINUE
    assert list(sweep.pruned) == ["c"]


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_group_of_one_is_never_stopped(spec: TrialSpec, scheduler: str) -> None:
    sweep = Sweep(spec, scheduler)
    sweep.add("alone", 1e-3)
    sweep.add("another seed", 1e-3, seed=1)
    sweep.known("another seed before", 1e-4, dict.fromkeys(range(1, 28), 99.0), seed=2)
    for epoch in range(1, EPOCHS + 1):
        sweep.report("another seed", epoch, **{f"e{epoch}": 90.0})
        sweep.report("alone", epoch, **{f"e{epoch}": 1.0 / epoch})
    assert not sweep.pruned


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_what_others_reached_before_the_driver_began_counts(spec: TrialSpec, scheduler: str) -> None:
    sweep = Sweep(spec, scheduler)
    sweep.known("finished", 1e-3, dict.fromkeys(range(1, 28), 60.0))
    sweep.known("pruned", 1e-2, dict.fromkeys(range(1, 5), 50.0))
    sweep.known("begun", 1e-1, dict.fromkeys(range(1, 8), 55.0))
    sweep.add("new", 1e-6)
    sweep.report("new", 4, **{f"e{epoch}": 7.0 for epoch in range(1, 5)})
    assert list(sweep.pruned) == ["new"]


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_resumed_trial_is_not_stopped_for_what_it_reached_before(spec: TrialSpec, scheduler: str) -> None:
    """It reports epochs long before it is validated again; and what is in its folder is judged no more."""
    sweep = Sweep(spec, scheduler)
    sweep.known("one", 1e-3, dict.fromkeys(range(1, 28), 60.0))
    sweep.known("two", 1e-2, dict.fromkeys(range(1, 28), 50.0))
    sweep.add("resumed", 1e-4, dict.fromkeys(range(1, 8), 5.0))
    assert not sweep.pruned
    for epoch in (7, 8, 9):
        sweep.report("resumed", epoch)
    sweep.report("resumed", 7, e6=5.0, e7=5.0)
    assert not sweep.pruned
    sweep.report("resumed", 11, e9=70.0, e10=71.0)
    assert not sweep.pruned
    sweep.scheduler.on_trial_add(None, sweep.trials["resumed"])  # its node was lost; the folder is not replayed twice
    sweep.report("resumed", 11, e10=71.0, e11=72.0)
    assert not sweep.pruned


def test_each_validation_is_heard_once_and_in_order(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    heard: list[tuple[str, int]] = []
    real = AsyncHyperBandScheduler.on_trial_result

    def listening(self: Any, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        heard.append((trial.trial_id, result["epoch"]))
        return real(self, controller, trial, result)

    monkeypatch.setattr(AsyncHyperBandScheduler, "on_trial_result", listening)
    sweep = Sweep(spec)
    sweep.add("t", 1e-3, {1: 1.0, 2: 2.0})
    sweep.report("t", 4, e2=2.0, e3=3.0, e4=4.0)
    sweep.report("t", 5)
    sweep.report("t", 6, e5=5.0, e6=6.0)
    sweep.report("t", 6, e5=5.0, e6=6.0)  # Tune repeats the last report at a trial's end
    assert heard == [("tune-t", epoch) for epoch in (3, 4, 5, 6)]


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_at_its_last_epoch_a_trial_is_stopped_no_more(spec: TrialSpec, scheduler: str) -> None:
    sweep = Sweep(spec, scheduler)
    for name, rate in (("one", 1e-3), ("two", 1e-2)):
        sweep.known(name, rate, dict.fromkeys(range(1, 28), 60.0))
    sweep.add("slow driver", 1e-4)
    sweep.report("slow driver", EPOCHS, **{f"e{epoch}": 5.0 for epoch in range(1, EPOCHS + 1)})
    sweep.report("slow driver", EPOCHS)
    assert not sweep.pruned


def test_an_exempt_trial_is_trained_to_its_end_and_counts_as_evidence(spec: TrialSpec) -> None:
    sweep = Sweep(spec, exempt={"again"})
    sweep.known("good", 1e-3, dict.fromkeys(range(1, 28), 60.0))
    sweep.add("again", 1e-6, dict.fromkeys(range(1, 5), 5.0))
    sweep.add("judged", 1e-7)
    sweep.report("again", 12, **{f"e{epoch}": 5.0 for epoch in range(5, 13)})
    assert not sweep.pruned
    sweep.report("judged", 4, e4=4.0)
    assert list(sweep.pruned) == ["judged"]


def test_a_trial_that_is_suggested_later_joins_its_rivals(spec: TrialSpec) -> None:
    sweep = Sweep(spec)
    sweep.add("first", 1e-3)
    sweep.report("first", 4, e4=60.0)
    sweep.add("later", 2e-3)
    sweep.report("later", 4, e4=6.0)
    assert list(sweep.pruned) == ["later"]


def test_scores_are_those_of_validated_epochs(tmp_path: Path, spec: TrialSpec) -> None:
    folder = TrialFolder(tmp_path, spec.trial_id)
    folder.write_spec(spec)
    folder.record(AttemptStarted(host="h", pid=1, device="cpu", code="0"))
    for number, score in ((1, None), (2, 20.0), (3, None), (2, 21.0)):
        folder.record(EpochFinished(epoch=number, loss=1.0, lr=1e-3, seconds=1.0, val_miou=score))
    folder.record(StoppedEarly(epoch=3, message="behind"))
    assert scores_in(tmp_path, spec.trial_id) == [{"epoch": 2, "val_miou": 21.0}]
    assert scores_in(tmp_path, "nobody") == []


def test_placing_and_early_stopping_go_together(spec: TrialSpec) -> None:
    from cryobench.orchestrator.sweep.placement import placing

    sweep, asked = Sweep(spec), list[str]()

    class Placement:
        def request(self, trial: str) -> str:
            asked.append(trial)
            return "a bundle"

    trial = TuneTrial("t")
    trial.update_resources = lambda request: None  # type: ignore[attr-defined]
    sweep.specs["t"] = sweep.base
    scheduler = placing(EarlyStopping)(Placement(), sweep.stops)
    scheduler.on_trial_add(None, trial)
    assert asked == ["t"]
    assert scheduler.on_trial_result(None, trial, {"training_iteration": 1, "validated": []}) == "CONTINUE"
