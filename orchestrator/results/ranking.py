"""The paper's table: encoders x data sets with averages and ranks."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

PUBLISHED = Path(__file__).parent / "published_results.csv"


@dataclass
class EncoderRow:
    """One line of the table; ``miou`` by data set in percent, averages None where a data set is missing."""

    encoder: str
    title: str
    miou: dict[str, float] = field(default_factory=dict)
    lr: dict[str, float] = field(default_factory=dict)
    avg_miou: float | None = None
    avg_rank: float | None = None
    weights: str = ""


@dataclass(frozen=True)
class ResultTable:
    """All encoders under one regime and protocol, best average rank first."""

    regime: str
    protocol: str
    datasets: tuple[str, ...]
    rows: tuple[EncoderRow, ...]
    rates: int
    generated: bool

    def as_json(self) -> dict[str, Any]:
        """The plain form."""
        return {
            "regime": self.regime,
            "protocol": self.protocol,
            "generated_data": self.generated,
            "datasets": list(self.datasets),
            "encoders": [
                {
                    "encoder": row.encoder,
                    **{name: row.miou.get(name) for name in self.datasets},
                    "avg_miou": row.avg_miou,
                    "avg_rank": row.avg_rank,
                    "lr": row.lr,
                    "weights": row.weights,
                }
                for row in self.rows
            ],
        }


def competition_ranks(values: Mapping[str, float]) -> dict[str, int]:
    """Standard competition rank, highest value first: ties share the best rank."""
    return {name: 1 + sum(other > value for other in values.values()) for name, value in values.items()}


def result_tables(rows: Iterable[Mapping[str, Any]]) -> list[ResultTable]:
    """One table a regime and protocol from leaderboard rows.

    A cell is the test mIoU at the learning rate with the best validation mIoU, both averaged over seeds.
    """
    cells: dict[tuple[str, str], dict[tuple[str, str], list[Mapping[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        if row["test_miou"] is not None:
            cells[row["protocol"], row["regime"]][row["encoder"], row["dataset"]].append(row)
    order = {"frozen": 0, "few_shot": 1, "finetune": 2}
    keys = sorted(cells, key=lambda key: (key[0], order.get(key[1], len(order)), key[1]))
    return [_table(protocol, regime, cells[protocol, regime]) for protocol, regime in keys]


def rank_rows(rows: Iterable[EncoderRow], datasets: tuple[str, ...]) -> tuple[EncoderRow, ...]:
    """Fill in averages and ranks (only for encoders with every data set) and sort by them."""
    rows = list(rows)
    ranks = {
        name: competition_ranks({row.encoder: row.miou[name] for row in rows if name in row.miou}) for name in datasets
    }
    for row in rows:
        if all(name in row.miou for name in datasets):
            row.avg_miou = fmean(row.miou[name] for name in datasets)
            row.avg_rank = fmean(ranks[name][row.encoder] for name in datasets)
    worst = float("inf")
    return tuple(
        sorted(rows, key=lambda r: (worst if r.avg_rank is None else r.avg_rank, -(r.avg_miou or 0), r.encoder))
    )


def published_rows() -> tuple[tuple[str, ...], list[EncoderRow]]:
    """The published frozen-encoder table: data sets and rows, averages and ranks computed from its cells."""
    datasets = ("glid", "gld", "sicd", "caffe", "gsdd")
    with PUBLISHED.open() as file:
        rows = [
            EncoderRow(line["encoder"], line["display_name"], {name: float(line[name]) for name in datasets})
            for line in csv.DictReader(file)
        ]
    return datasets, list(rank_rows(rows, datasets))


def _table(protocol: str, regime: str, cells: Mapping[tuple[str, str], list[Mapping[str, Any]]]) -> ResultTable:
    datasets = tuple(sorted({dataset for _, dataset in cells}))
    rows: dict[str, EncoderRow] = {}
    rates, generated = 1, False
    for (encoder, dataset), trials in cells.items():
        by_rate: dict[float, list[Mapping[str, Any]]] = defaultdict(list)
        for trial in trials:
            by_rate[trial["lr"]].append(trial)
        rates = max(rates, len(by_rate))
        best = max(by_rate, key=lambda rate: (fmean(t["best_val_miou"] for t in by_rate[rate]), -rate))
        row = rows.setdefault(encoder, EncoderRow(encoder, trials[0]["title"], weights=trials[0]["weights"]))
        row.miou[dataset] = fmean(t["test_miou"] for t in by_rate[best])
        row.lr[dataset] = best
        generated |= any(str(t["data_origin"]).startswith("generated") for t in trials)
    return ResultTable(regime, protocol, datasets, rank_rows(rows.values(), datasets), rates, generated)
