"""The table: no cell mixes unlike trials, rates are compared on common seeds, averages are over named data sets."""

import csv
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobench.conf.benchmark_editions import EDITIONS
from cryobench.conf.errors import UnknownNameError
from cryobench.orchestrator.results.comparability import Comparability
from cryobench.orchestrator.results.published import (
    beside_published,
    published_path,
    published_remarks,
    published_table,
)
from cryobench.orchestrator.results.ranking import ResultTable, SystemRow, ranked, result_tables
from cryobench.orchestrator.results.table_text import as_json, beside_lines, cell_text, line, markdown, notes

NUMBERS = itertools.count()
KEY = {
    "editions": [],
    "protocol": "p",
    "regime": "frozen",
    "regime_digest": "r",
    "variant": "optical",
    "modality": "optical",
    "view": "either",
    "statistics": "training",
    "weights_kind": "scratch",
    "weights_digest": None,
    "encoder_digest": "e",
    "micro_batches": 1,
}


def row(encoder: str, dataset: str, lr: float, val: float | None, test: float | None, **more: Any) -> dict[str, Any]:
    plain = {
        "trial_id": f"{next(NUMBERS):016x}",
        "encoder": encoder,
        "title": encoder,
        "dataset": dataset,
        "lr": lr,
        "seed": 1,
        "status": "completed",
        "failure_kind": None,
        "best_val_miou": val,
        "test_miou": test,
        "weights": "scratch",
        "data_origin": "files",
        "store_digest": f"store of {dataset}",
    }
    return {**plain, **KEY, **more}


def tables(*rows: dict[str, Any], named: list[str] | None = None) -> list[ResultTable]:
    return result_tables(rows, "2026-03", named)


def only(*rows: dict[str, Any], named: list[str] | None = None) -> ResultTable:
    (table,) = tables(*rows, named=named)
    return table


def miou(table: ResultTable) -> dict[str, dict[str, float | None]]:
    return {f"{r.encoder} {r.label}".strip(): {n: c.miou for n, c in r.cells.items()} for r in table.rows}


def test_ties_share_the_best_rank() -> None:
    rows = [row(n, "x", 1e-3, 1, v) for n, v in {"a": 3.0, "b": 5.0, "c": 3.0, "d": 1.0}.items()]
    assert {r.encoder: r.avg_rank for r in only(*rows).rows} == {"b": 1, "a": 2, "c": 2, "d": 4}


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_published_table_is_reproduced_from_its_cells(edition: str) -> None:
    """All but RAMEN's average, which is not the mean of its row (57.17 for 53.60)."""
    with published_path(edition).open() as file:
        printed = {line["encoder"]: line for line in csv.DictReader(file)}
    found = published_table(edition).rows
    assert {one.encoder for one in found} == printed.keys()
    for one in found:
        said = printed[one.encoder]
        assert one.avg_rank == pytest.approx(float(said.get("avg_rank") or said["rank"]), abs=0.005), one.encoder
        expected = 53.60 if (edition, one.encoder) == ("2026-03", "ramen") else float(said["avg_miou"])
        assert one.avg_miou == pytest.approx(expected, abs=0.0051), one.encoder
    assert found[0].encoder == "unet"


def test_a_printed_average_that_is_not_its_rows_is_remarked() -> None:
    assert published_remarks("2026-03") == ["RAMEN: average 53.60 by its row, 57.17 as printed."]
    assert published_remarks("2026-08") == []


def test_an_unknown_edition_lists_the_right_ones() -> None:
    with pytest.raises(UnknownNameError, match="Known: 2026-03, 2026-08"):
        result_tables([], "2026-03") or published_table("2027")


def test_published_and_random_weights_are_rows_of_their_own() -> None:
    """They printed as one row of 47.68."""
    table = only(
        row("a", "x", 1e-3, 1, 47.94, weights_kind="published", weights_digest="1a2b3c4d5e"),
        row("a", "x", 1e-3, 1, 47.42, weights_kind="random"),
    )
    assert miou(table) == {"a published weights": {"x": 47.94}, "a random weights": {"x": 47.42}}
    assert [r.avg_rank for r in table.rows] == [1, None]  # random weights take no rank beside published ones


@pytest.mark.parametrize(
    ("part", "first", "second"),
    [
        ("weights_digest", "1111111111", "2222222222"),
        ("modality", "optical", "sar"),
        ("encoder_digest", "e1", "e2"),
        ("micro_batches", 1, 4),
    ],
)
def test_what_differs_for_a_system_splits_its_row(part: str, first: Any, second: Any) -> None:
    table = only(
        row("a", "x", 1e-3, 1, 10, **{part: first}),
        row("a", "x", 1e-3, 1, 20, **{part: second}),
        row("a", "y", 1e-3, 1, 30, **{part: first}),
    )
    found = [{n: c.miou for n, c in r.cells.items()} for r in table.rows]
    assert found == [{"x": 10, "y": 30}, {"x": 20}]
    assert len({r.label for r in table.rows}) == 2
    assert [r.avg_miou for r in table.rows] == [20, None]


def test_variants_that_differ_between_data_sets_alone_are_one_row() -> None:
    table = only(
        row("croma", "x", 1e-3, 1, 10, modality="optical", weights_digest="aa"),
        row("croma", "y", 1e-3, 1, 20, modality="sar", variant="sar", weights_digest="bb"),
    )
    assert miou(table) == {"croma": {"x": 10, "y": 20}}


@pytest.mark.parametrize(
    ("part", "first", "second"),
    [("weights_kind", "published", "random"), ("weights_digest", "v1", "v2"), ("micro_batches", 1, 4)],
)
def test_a_row_has_one_kind_of_weights_one_file_and_one_way_over_all_data_sets(
    part: str, first: Any, second: Any
) -> None:
    """Published on one data set and random on another were one row, averaged and ranked."""
    table = only(row("a", "x", 1e-3, 1, 10, **{part: first}), row("a", "y", 1e-3, 1, 99, **{part: second}))
    assert [{n: c.miou for n, c in r.cells.items()} for r in table.rows] in (
        [{"x": 10}, {"y": 99}],
        [{"y": 99}, {"x": 10}],
    )
    assert {r.avg_miou for r in table.rows} == {None}


def test_a_data_set_without_conflict_stands_in_every_row_of_its_system() -> None:
    table = only(
        row("a", "x", 1e-3, 1, 10, weights_digest="v1"),
        row("a", "x", 1e-3, 1, 20, weights_digest="v2"),
        row("a", "y", 1e-3, 1, 30, weights_digest="of the radar file", variant="sar"),
    )
    assert sorted(tuple(r.values()) for r in miou(table).values()) == [(10, 30), (20, 30)]


@pytest.mark.parametrize(
    ("part", "first", "second"),
    [
        ("protocol", "p", "q"),
        ("regime", "frozen", "finetune"),
        ("regime_digest", "r", "s"),
        ("statistics", "training", "published"),
        ("view", "reference", "actual"),
        ("store_digest", "one", "two"),
    ],
)
def test_what_differs_for_a_comparison_makes_tables_of_their_own(part: str, first: str, second: str) -> None:
    found = tables(row("a", "x", 1e-3, 1, 10, **{part: first}), row("a", "x", 1e-3, 1, 20, **{part: second}))
    assert sorted(table.rows[0].cells["x"].miou or 0 for table in found) == [10, 20]


def test_real_and_generated_data_are_never_averaged() -> None:
    real = row("a", "glid", 1e-3, 1, 90, store_digest="s1")
    generated = row("a", "glid", 1e-3, 1, 50, store_digest="s2", data_origin="generated (seed 234, 64 px)")
    failed = row("a", "glid", 1e-3, None, None, store_digest="s2", data_origin=None, status="failed")
    first, second = tables(real, generated, failed)
    assert (first.edition, first.generated, first.rows[0].cells["glid"].miou) == ("2026-03", False, 90)
    assert (second.edition, second.generated, second.rows[0].cells["glid"].miou) == (None, True, 50)
    assert second.rows[0].cells["glid"].failed == 1
    assert "generated" in " ".join(notes(second))


def test_what_is_fed_alike_in_both_views_stands_in_both() -> None:
    found = tables(
        row("a", "gsdd", 1e-3, 1, 1, view="reference"),
        row("a", "gsdd", 1e-3, 1, 2, view="actual"),
        row("a", "glid", 1e-3, 1, 3, view="either"),
    )
    assert [(t.view, t.rows[0].cells["gsdd"].miou, t.rows[0].cells["glid"].miou) for t in found] == [
        ("actual", 2, 3),
        ("reference", 1, 3),
    ]


def test_a_cell_is_the_rate_with_the_best_validation() -> None:
    table = only(row("a", "x", 1e-3, 50, 70), row("a", "x", 1e-4, 60, 65), row("b", "x", 1e-4, 1, 2))
    assert table.rates == 2
    cell = table.rows[0].cells["x"]
    assert (cell.miou, cell.lr, table.rows[0].avg_rank) == (65, 1e-4, 1)


def test_one_lucky_seed_does_not_stand_against_the_mean_of_three() -> None:
    three = [row("a", "x", 1e-3, 60 + s, 50 + s, seed=s) for s in (1, 2, 3)]
    cell = only(*three, row("a", "x", 1e-4, 99, 99, seed=1)).rows[0].cells["x"]
    assert (cell.miou, cell.lr, cell.seeds) == (52, 1e-3, (1, 2, 3))
    assert cell.remarks == ("lr 0.0001 left out: 1 of 3 seeds",)


def test_rates_with_the_same_seeds_compete_and_others_seeds_stay_out() -> None:
    rows = [row("a", "x", 1e-3, 60, 50, seed=s) for s in (1, 2)] + [row("a", "x", 1e-4, 70, 55, seed=s) for s in (1, 2)]
    cell = only(*rows).rows[0].cells["x"]
    assert (cell.miou, cell.lr, cell.remarks) == (55, 1e-4, ())


def test_seeds_are_averaged_with_their_spread() -> None:
    cell = only(row("a", "x", 1e-3, 50, 70, seed=1), row("a", "x", 1e-3, 60, 60, seed=2)).rows[0].cells["x"]
    assert (cell.miou, cell.seeds) == (65, (1, 2))
    assert cell.spread == pytest.approx(7.0710678)
    assert cell_text(cell) == "65.00 ±7.07 (2)"


def test_diverged_and_failed_trials_are_visible_in_their_cell() -> None:
    table = only(
        row("a", "x", 1e-3, 50, 70, status="diverged"),
        row("a", "x", 1e-3, None, None, seed=2, status="failed", micro_batches=None),
        row("b", "x", 1e-3, None, None, status="diverged"),
    )
    texts = {r.encoder: line(table, r)[1] for r in table.rows}
    assert texts == {"a": "70.00 †1 ✗1", "b": "– †1"}
    assert any("diverged" in note for note in notes(table))
    assert "†1" in markdown(table)
    assert as_json(table)["encoders"][0]["cells"]["x"]["diverged"] == 1


def test_a_seed_that_diverged_untested_at_the_chosen_rate_is_said() -> None:
    rows = [row("a", "x", 1e-3, 50, 50, seed=s) for s in (1, 2, 3)]
    cell = only(*rows, row("a", "x", 1e-3, None, None, seed=5, status="diverged")).rows[0].cells["x"]
    assert (cell.miou, cell.diverged, cell.remarks) == (50, 1, ("lr 0.001: not tested: seed 5 (diverged)",))


def test_a_result_that_cannot_be_read_is_visible() -> None:
    cell = only(row("a", "x", 1e-3, None, None)).rows[0].cells["x"]
    assert cell_text(cell) == "– ✗1"


def test_a_rate_that_diverged_untested_is_said() -> None:
    cell = only(row("a", "x", 1e-3, 50, 70), row("a", "x", 1e-2, None, None, status="diverged")).rows[0].cells["x"]
    assert (cell.miou, cell.diverged) == (70, 1)
    assert cell.remarks == ("lr 0.01 left out: 0 of 1 seeds (diverged)",)


def test_one_more_data_set_for_one_system_changes_nobody_elses_average() -> None:
    rows = [row(e, d, 1e-3, 1, 10) for e in ("a", "b") for d in EDITIONS["2026-03"].datasets]
    before = only(*rows)
    inside, outside = tables(*rows, row("c", "debris", 1e-3, 1, 99), row("c", "glid", 1e-3, 1, 99))
    assert {r.encoder: (r.avg_miou, r.avg_rank) for r in inside.rows} == {
        **{r.encoder: (r.avg_miou, r.avg_rank) for r in before.rows},
        "c": (None, None),
    }
    assert line(inside, inside.rows[-1])[-2:] == ["1 of 5", "–"]
    assert outside.edition is None


def test_outside_of_the_editions_named_data_sets_are_averaged() -> None:
    table = only(
        row("a", "debris", 1e-3, 1, 10),
        row("a", "front", 1e-3, 1, 20),
        row("b", "debris", 1e-3, 1, 30),
        named=["debris"],
    )
    assert {r.encoder: r.avg_miou for r in table.rows} == {"a": 10, "b": 30}
    assert line(table, table.rows[0])[:2] == ["b", "30.00"]


def test_ours_stands_beside_the_published_table() -> None:
    rows = [row("unet", d, 1e-3, 1, 70) for d in EDITIONS["2026-03"].datasets]
    random = row("croma", "glid", 1e-3, 1, 12, weights_kind="random")
    found = {one.encoder: one for one in beside_published(only(*rows, random), "2026-03")}
    assert len(found) == 16
    assert found["unet"].cells["glid"] == (70, 91.58, pytest.approx(-21.58))
    assert found["unet"].average[2] == pytest.approx(70 - 66.382)
    assert found["croma"].cells["glid"] == (12, None, None)  # random weights have no published number
    assert found["dofa"].cells["glid"] == (None, 92.61, None)
    kinds = [text[1] for text in beside_lines(found["unet"])]
    assert kinds == ["rerun", "copied", "difference"]


def test_a_key_has_every_part_of_the_design(one_trial: Any) -> None:
    spec = one_trial()
    columns = Comparability.of(spec, "files", 1).columns()
    assert set(KEY) | {"comparability", "store_digest"} == set(columns)
    assert columns["comparability"] != Comparability.of(spec, "files", 4).columns()["comparability"]
    assert spec.view == "either"


SYSTEMS = st.sampled_from("abcd")
ROWS = st.lists(
    st.builds(
        lambda encoder, dataset, lr, seed, val, test, status, **more: row(
            encoder,
            dataset,
            lr,
            None if status == "failed" else val,
            None if status == "failed" else test,
            seed=seed,
            status=status,
            **more,
        ),
        encoder=SYSTEMS,
        dataset=st.sampled_from(["glid", "gld", "sicd", "caffe", "gsdd", "debris"]),
        lr=st.sampled_from([1e-4, 1e-3, 1e-2]),
        seed=st.integers(1, 3),
        val=st.floats(0, 100),
        test=st.floats(0, 100),
        status=st.sampled_from(["completed", "completed", "diverged", "failed"]),
        weights_kind=st.sampled_from(["published", "random"]),
        weights_digest=st.sampled_from([None, "d1", "d2"]),
        modality=st.sampled_from(["optical", "sar"]),
        encoder_digest=st.sampled_from(["e", "e", "f"]),
        variant=st.sampled_from(["own", "optical"]),
        micro_batches=st.sampled_from([1, 1, 4]),
        view=st.sampled_from(["either", "reference", "actual"]),
        statistics=st.sampled_from(["training", "published"]),
        protocol=st.sampled_from(["p", "q"]),
        store_digest=st.sampled_from(["s1", "s2"]),
        data_origin=st.just("files"),
    ),
    max_size=25,
)


def shown(found: list[ResultTable]) -> dict[Any, Any]:
    """Every row by what identifies it, with its numbers."""
    return {
        (t.edition, t.protocol, t.regime, t.view, t.statistics, tuple(sorted(t.stores.items())), r.encoder, r.label): (
            {name: (cell.miou, cell.trials) for name, cell in r.cells.items()},
            r.avg_miou,
        )
        for t in found
        for r in t.rows
    }


@given(ROWS)
@settings(max_examples=80, deadline=None)
def test_no_cell_mixes_keys(rows: list[dict[str, Any]]) -> None:
    by_id = {r["trial_id"]: r for r in rows}
    parts = [name for name in KEY if name != "editions"] + ["store_digest"]
    for _, (cells, _) in shown(result_tables(rows, "2026-03")).items():
        for _, trials in cells.values():
            used = [by_id[trial] for trial in trials]
            assert len({tuple(str(r[name]) for name in parts) for r in used}) <= 1
            assert len({r["lr"] for r in used}) <= 1
            assert len({r["seed"] for r in used}) == len(used)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_no_two_rows_of_a_table_bear_the_same_name(rows: list[dict[str, Any]]) -> None:
    for table in result_tables(rows, "2026-03"):
        names = [(one.encoder, one.label) for one in table.rows]
        assert len(set(names)) == len(names)


@given(ROWS, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_does_not_matter(rows: list[dict[str, Any]], random: Any) -> None:
    mixed = list(rows)
    random.shuffle(mixed)
    assert [as_json(t) for t in result_tables(mixed, "2026-03")] == [as_json(t) for t in result_tables(rows, "2026-03")]


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_adding_a_system_never_changes_anothers_numbers(rows: list[dict[str, Any]]) -> None:
    without = shown(result_tables([r for r in rows if r["encoder"] != "d"], "2026-03"))
    numbers = {(key[-2], str(value)) for key, value in without.items()}
    found = {(key[-2], str(value)) for key, value in shown(result_tables(rows, "2026-03")).items()}
    assert {n for n in numbers if n[0] != "d"} <= found


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_averages_and_ranks_are_those_of_plain_python(values: list[tuple[float, float]]) -> None:
    from statistics import fmean

    rows = [row(f"s{i}", d, 1e-3, 1, v) for i, pair in enumerate(values) for d, v in zip("xy", pair, strict=True)]
    found: dict[str, SystemRow] = {r.encoder: r for r in ranked(only(*rows).rows, ("x", "y"))}
    for i, pair in enumerate(values):
        assert found[f"s{i}"].avg_miou == pytest.approx(fmean(pair))
        places = [1 + sum(other[k] > pair[k] for other in values) for k in (0, 1)]
        assert found[f"s{i}"].avg_rank == fmean(places)
