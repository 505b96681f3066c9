import csv

import pytest

from cryobench.orchestrator.results.ranking import PUBLISHED, competition_ranks, published_rows, result_tables


def row(encoder: str, dataset: str, lr: float, val: float, test: float, **more: object) -> dict[str, object]:
    plain = {"encoder": encoder, "title": encoder, "dataset": dataset, "regime": "frozen", "protocol": "p", "lr": lr}
    return plain | {"best_val_miou": val, "test_miou": test, "weights": "scratch", "data_origin": "files"} | more


def test_ties_share_the_best_rank() -> None:
    assert competition_ranks({"a": 3.0, "b": 5.0, "c": 3.0, "d": 1.0}) == {"b": 1, "a": 2, "c": 2, "d": 4}


def test_the_published_table_is_reproduced_from_its_cells() -> None:
    """All but RAMEN's average, which is not the mean of its row (57.17 for 53.60)."""
    with PUBLISHED.open() as file:
        published = {line["encoder"]: line for line in csv.DictReader(file)}
    _, rows = published_rows()
    assert len(rows) == 16
    for found in rows:
        line = published[found.encoder]
        assert found.avg_rank == pytest.approx(float(line["avg_rank"]), abs=0.005), found.encoder
        if found.encoder == "ramen":
            assert found.avg_miou == pytest.approx(53.60, abs=0.005)
        else:
            assert found.avg_miou == pytest.approx(float(line["avg_miou"]), abs=0.006), found.encoder
    assert rows[0].encoder == "unet"


def test_a_cell_is_the_rate_with_the_best_validation() -> None:
    (table,) = result_tables([row("a", "x", 1e-3, 50, 70), row("a", "x", 1e-4, 60, 65), row("b", "x", 1e-4, 1, 2)])
    assert table.rates == 2
    first = table.rows[0]
    assert (first.encoder, first.miou["x"], first.lr["x"], first.avg_rank) == ("a", 65, 1e-4, 1)


def test_seeds_are_averaged() -> None:
    (table,) = result_tables([row("a", "x", 1e-3, 50, 70), row("a", "x", 1e-3, 60, 60)])
    assert table.rows[0].miou["x"] == 65


def test_regimes_and_protocols_are_never_mixed() -> None:
    rows = [
        row("a", "x", 1e-3, 1, 1),
        row("a", "x", 1e-3, 1, 2, regime="finetune"),
        row("a", "x", 1e-3, 1, 3, protocol="q"),
    ]
    found = [(t.protocol, t.regime, t.rows[0].miou["x"]) for t in result_tables(rows)]
    assert found == [("p", "frozen", 1), ("p", "finetune", 2), ("q", "frozen", 3)]


def test_an_encoder_without_every_data_set_has_no_average() -> None:
    (table,) = result_tables([row("a", "x", 1e-3, 1, 1), row("a", "y", 1e-3, 1, 1), row("b", "x", 1e-3, 1, 9)])
    assert [(r.encoder, r.avg_miou) for r in table.rows] == [("a", 1.0), ("b", None)]


def test_a_diverged_trial_without_a_test_leaves_its_cell_empty() -> None:
    assert result_tables([row("a", "x", 1e-3, 1, None)]) == []  # type: ignore[arg-type]
