"""Rates suggested by Optuna: how many, which, and what is on disk before anybody runs them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from cryobench.conf.errors import DiskFullError, MissingLibraryError, RecordError
from cryobench.conf.schema import LrSearchSpec
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.sweep.rate_search import (
    CellStudy,
    RateSearch,
    RateSearcher,
    Standing,
    require_optuna,
    standing,
)
from cryobench.orchestrator.sweep.suggestions import (
    SearchCell,
    left_to_suggest,
    read_suggestions,
    record_left,
    record_suggestion,
)

pytest.importorskip("optuna")


@pytest.fixture
def spec(one_trial: Any) -> TrialSpec:
    found: TrialSpec = one_trial()
    return found


def wanted(samples: int = 8, low: float = 1e-5, high: float = 1e-1) -> LrSearchSpec:
    return LrSearchSpec(lr=(high, low), regimes=("finetune",), samples=samples)


def study(
    spec: TrialSpec,
    known: dict[float, Standing] | None = None,
    suggested: tuple[float, ...] = (),
    search: LrSearchSpec | None = None,
) -> CellStudy:
    return CellStudy(SearchCell(spec, suggested, blocked=False), search or wanted(), dict(known or {}))


def drawn(cell: CellStudy, score: Any = lambda rate: 50.0) -> list[float]:
    """All rates of a cell whose trials run one after the other."""
    found = []
    while cell.left and (rate := cell.suggest()) is not None:
        found.append(rate)
        cell.tell(rate, score(rate))
    return found


def test_rates_are_new_rounded_and_within_the_range(spec: TrialSpec) -> None:
    cell = study(spec, {1e-3: 60.0, 7e-2: "failed"}, search=wanted(12))
    rates = drawn(cell)
    assert len(rates) == len({*rates, 1e-3, 7e-2}) - 2 == 12
    assert all(1e-5 <= rate <= 1e-1 and rate == float(f"{rate:.2e}") for rate in rates)
    assert cell.left == 0


def test_the_cell_seeds_its_sampler(spec: TrialSpec) -> None:
    assert drawn(study(spec)) == drawn(study(spec))
    assert drawn(study(spec)) != drawn(study(spec.model_copy(update={"seed": 1})))
    assert study(spec).suggest() == study(spec.model_copy(update={"lr": 7.0})).suggest()  # at whatever rate it stands


def test_it_learns_where_good_rates_are(spec: TrialSpec) -> None:
    def score(rate: float) -> float:
        from math import log10

        return 80.0 - 10.0 * abs(log10(rate) + 3.0)

    rates = drawn(study(spec, search=wanted(30)), score)
    near = sum(1e-4 <= rate <= 1e-2 for rate in rates[-15:])
    assert near >= 10  # of 15; a uniform draw would give 7 or 8


def test_what_was_suggested_before_counts_and_is_not_suggested_again(spec: TrialSpec) -> None:
    first = drawn(study(spec, search=wanted(3)))
    again = study(spec, dict.fromkeys(first, 50.0), tuple(first), wanted(8))
    assert again.left == 5
    more = drawn(again)
    assert len(more) == 5
    assert set(first).isdisjoint(more)
    assert study(spec, dict.fromkeys(first, 50.0), tuple(first), wanted(2)).left == 0


def test_rates_outside_the_range_and_failed_ones_are_no_points_of_the_study(spec: TrialSpec) -> None:
    cell = study(spec, {1.0: 99.0, 1e-9: "failed", 1e-3: 70.0, 1e-2: "failed"})
    points = cell._study._ot_study.trials
    assert [(trial.params["lr"], trial.state.name, trial.value) for trial in points] == [
        (1e-3, "COMPLETE", 70.0),
        (1e-2, "FAIL", None),
    ]


def test_a_cell_without_new_rates_is_at_its_end(spec: TrialSpec) -> None:
    cell = study(spec, search=wanted(20, 1.00e-3, 1.03e-3))
    rates = drawn(cell)
    assert {*rates} <= {1.00e-3, 1.01e-3, 1.02e-3, 1.03e-3}
    assert 1 < len(rates) == len({*rates})
    assert cell.left == 0


def test_a_cell_waits_when_enough_of_its_trials_run(spec: TrialSpec) -> None:
    cell = study(spec, {1e-3: "open"})
    rates = [cell.suggest(), cell.suggest()]
    assert cell.waits
    assert rates[0] is not None
    cell.tell(rates[0], 40.0)
    assert not cell.waits


@pytest.mark.parametrize(
    ("status", "best", "told"),
    [
        ("completed", 50.0, 50.0),
        ("pruned", 30.0, 30.0),
        ("pruned", None, "failed"),
        ("diverged", 20.0, 20.0),
        ("diverged", None, 0.0),
        ("failed", 20.0, "failed"),
        ("interrupted", 20.0, "failed"),
    ],
)
def test_what_a_study_is_told(status: str, best: float | None, told: Standing) -> None:
    assert standing(status, best) == told


class Search:
    """A search over two cells, through the searcher that Tune asks; a list stands for the disk."""

    def __init__(self, spec: TrialSpec, samples: int = 2) -> None:
        self.specs = [spec, spec.model_copy(update={"seed": 1})]
        self.recorded: list[str] = []
        self.said: list[str] = []
        self.trouble: Exception | None = None
        self.leaving = False
        search = wanted(samples)
        studies = [CellStudy(SearchCell(one, (), blocked=False), search, {one.lr: "open"}) for one in self.specs]
        self.search = RateSearch(studies, self.take_up, self.said.append)
        self.searcher = RateSearcher(self.search, self.specs, lambda trial: None, lambda: self.leaving)
        self.count = 0

    def take_up(self, spec: TrialSpec) -> None:
        if self.trouble:
            raise self.trouble
        self.recorded.append(spec.trial_id)

    def ask(self) -> tuple[str, Any]:
        self.count += 1
        return f"tune-{self.count}", self.searcher.suggest(f"tune-{self.count}")

    def end(self, tune_id: str, score: float, status: str = "completed") -> None:
        ended = {"event": "ended", "status": status}
        self.searcher.on_trial_result(tune_id, {"validated": [{"epoch": 1, "val_miou": score - 1}], "events": []})
        last = {"validated": [{"epoch": 2, "val_miou": score}], "events": [ended]}
        self.searcher.on_trial_result(tune_id, last)
        self.searcher.on_trial_complete(tune_id, last)


def test_asked_trials_come_first_then_the_cells_in_turn_until_their_budgets_are_used(spec: TrialSpec) -> None:
    search = Search(spec)
    asked = [search.ask() for _ in range(2)]
    assert [config["trial"] for _, config in asked] == [one.trial_id for one in search.specs]
    assert search.recorded == []
    suggested = [search.ask() for _ in range(4)]
    specs = [TrialSpec.model_validate_json(config["spec"]) for _, config in suggested]
    assert [one.seed for one in specs] == [specs[0].seed, specs[1].seed] * 2
    assert specs[0].seed != specs[1].seed
    assert search.recorded == [config["trial"] for _, config in suggested] == [one.trial_id for one in specs]
    assert search.search.left == 0
    assert search.ask()[1] == Searcher.FINISHED


def test_while_a_cell_waits_there_is_nothing_and_results_free_it(spec: TrialSpec) -> None:
    search = Search(spec, samples=4)
    running = [search.ask() for _ in range(6)]  # three of each cell
    assert all(config for _, config in running)
    assert search.ask()[1] is None
    search.end(running[0][0], 60.0)
    assert search.ask()[1] is not None
    assert search.ask()[1] is None
    (first, _) = search.search._studies
    values = {one.cell.template.seed: one.known for one in search.search._studies}
    assert values[search.specs[0].seed][spec.lr] == 60.0
    assert first is not None


def test_failed_trials_free_their_cell_and_are_told_as_failed(spec: TrialSpec) -> None:
    search = Search(spec)
    tune_id, _ = search.ask()
    search.searcher.on_trial_complete(tune_id, error=True)  # it could not even begin
    known = {one.cell.template.seed: one.known for one in search.search._studies}
    assert known[spec.seed][spec.lr] == "failed"
    again = RateSearcher(search.search, [spec], lambda trial: None, lambda: False)  # the next round takes it up
    assert known[spec.seed][spec.lr] == "open"
    config = again.suggest("x")
    assert isinstance(config, dict)
    assert config["trial"] == spec.trial_id
    again.on_trial_complete("x", {"validated": [{"epoch": 3, "val_miou": 44.0}], "events": [_ended("pruned")]})
    assert known[spec.seed][spec.lr] == 44.0


def _ended(status: str) -> dict[str, str]:
    return {"event": "ended", "status": status}


def test_what_cannot_be_recorded_is_not_handed_out_and_tried_again(spec: TrialSpec) -> None:
    search = Search(spec)
    for _ in range(2):
        search.ask()
    search.trouble = DiskFullError("No space left while writing x.")
    assert search.ask()[1] is None
    assert search.ask()[1] is None
    assert search.said == [
        "A suggested trial could not be recorded and is not run before it is: No space left while writing x."
    ]
    assert search.search.left == 4
    search.trouble = None
    trials = [search.ask()[1]["trial"] for _ in range(4)]
    assert search.recorded == trials
    assert search.ask()[1] == Searcher.FINISHED


def test_nothing_is_suggested_once_all_are_to_leave(spec: TrialSpec) -> None:
    search = Search(spec)
    running = [search.ask() for _ in range(3)]
    search.leaving = True
    assert search.ask()[1] == Searcher.FINISHED
    search.end(running[0][0], 0.0, "interrupted")
    known = {one.cell.template.seed: one.known for one in search.search._studies}
    assert known[spec.seed][spec.lr] == "open"  # it goes on another time
    assert len(search.recorded) == 1


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_optuna()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'cryobench\[search\]'"):
        require_optuna()


def test_suggestions_are_recorded_in_order_and_once(tmp_path: Path, spec: TrialSpec) -> None:
    assert read_suggestions(tmp_path, "mine") == []
    assert left_to_suggest(tmp_path, "mine") == 0
    rates = [spec.model_copy(update={"lr": lr}) for lr in (3e-4, 1e-5)]
    for number, one in enumerate(rates):
        record_suggestion(tmp_path, "mine", one, 5 - number)
    record_suggestion(tmp_path, "mine", rates[0], 4)  # written, but not brought to the store before
    found = read_suggestions(tmp_path, "mine")
    assert [(one.lr, one.trial_id, one.rivals) for one in found] == [
        (one.lr, one.trial_id, spec.rivals_id) for one in rates
    ]
    assert left_to_suggest(tmp_path, "mine") == 4
    record_left(tmp_path, "mine", 0)
    assert left_to_suggest(tmp_path, "mine") == 0
    assert read_suggestions(tmp_path, "mine") == found
    plain = json.loads((tmp_path / "sweeps" / "suggestions" / "mine.json").read_text())
    assert (plain["format"], plain["name"]) == (1, "mine")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"format": 2, "suggestions": [], "left": 0}', "later cryobench"),
        ('{"format": 1, "suggestions": [', "damaged"),
        ('{"format": 1, "suggestions": [{"lr": 1}], "left": 0}', "damaged"),
        ('{"format": 1, "suggestions": []}', "damaged"),
    ],
)
def test_a_record_that_cannot_be_read_is_never_begun_anew(
    tmp_path: Path, spec: TrialSpec, text: str, told: str
) -> None:
    path = tmp_path / "sweeps" / "suggestions" / "mine.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(RecordError, match=told):
        record_suggestion(tmp_path, "mine", spec, 1)
    assert path.read_text() == text
