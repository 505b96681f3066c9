"""The published tables, made from their cells by the same code as ours, and ours beside them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryobench.conf.benchmark_editions import edition_named
from cryobench.orchestrator.results.cells import Cell
from cryobench.orchestrator.results.ranking import ResultTable, SystemRow, ranked

_HERE = Path(__file__).parent
#: Half of the last printed digit, and a little for its rounding.
_PRINTED = 0.0051


def published_path(edition: str) -> Path:
    """The file that holds an edition's published table."""
    return _HERE / f"published_results_{edition_named(edition).name.replace('-', '_')}.csv"


def published_table(edition: str) -> ResultTable:
    """An edition's published table of frozen encoders, its averages and ranks computed from its cells."""
    known = edition_named(edition)
    rows = [
        SystemRow(
            encoder=line["encoder"],
            title=line["display_name"],
            label="",
            weights="scratch" if line["encoder"] in ("unet", "vit") else "published",
            cells={name: _copied(float(line[name])) for name in known.datasets},
        )
        for line in _lines(edition)
    ]
    return ResultTable(
        edition=edition,
        protocol="published",
        regime="frozen",
        view="reference",
        statistics="published",
        generated=False,
        stores={},
        datasets=known.datasets,
        rows=ranked(rows, known.datasets, known.rank_by),
    )


def published_remarks(edition: str) -> list[str]:
    """Where the printed averages and ranks are not those of their rows."""
    rank = "avg_rank" if edition_named(edition).rank_by == "data_set" else "rank"
    found = {row.encoder: row for row in published_table(edition).rows}
    remarks = []
    for line in _lines(edition):
        row = found[line["encoder"]]
        for what, value, printed in (("average", row.avg_miou, line["avg_miou"]), ("rank", row.avg_rank, line[rank])):
            if value is not None and abs(value - float(printed)) > _PRINTED:
                remarks.append(f"{row.title}: {what} {value:.2f} by its row, {float(printed):.2f} as printed.")
    return remarks


@dataclass(frozen=True)
class Beside:
    """One system of ours beside the published one. ``origin`` of a number is ``rerun`` or ``copied``.

    Cells are (ours, published, difference), each None where there is none.
    """

    encoder: str
    title: str
    label: str
    cells: dict[str, tuple[float | None, float | None, float | None]]
    average: tuple[float | None, float | None, float | None]

    def as_json(self) -> dict[str, Any]:
        """The plain form; every number says whether it was rerun here or copied."""

        def plain(values: tuple[float | None, float | None, float | None]) -> dict[str, Any]:
            ours, theirs, apart = values
            return {"rerun": ours, "copied": theirs, "difference": apart}

        return {
            "encoder": self.encoder,
            "label": self.label,
            "cells": {name: plain(values) for name, values in self.cells.items()},
            "avg_miou": plain(self.average),
        }


def beside_published(table: ResultTable, edition: str) -> list[Beside]:
    """Every system of ``table`` and of the published one; a system with random weights has no published number."""
    published = published_table(edition)
    theirs = {row.encoder: row for row in published.rows}
    ours = list(table.rows)
    missing = [row for row in published.rows if row.encoder not in {own.encoder for own in ours}]
    pairs: Iterable[tuple[SystemRow | None, SystemRow | None]] = [
        *((row, theirs.get(row.encoder) if row.weights != "random" else None) for row in ours),
        *((None, row) for row in missing),
    ]
    found = []
    for own, other in pairs:
        row = own or other
        assert row is not None
        cells = {
            name: _apart(own.cells[name].miou if own and name in own.cells else None, _miou(other, name))
            for name in published.datasets
        }
        average = _apart(own.avg_miou if own else None, other.avg_miou if other else None)
        found.append(Beside(row.encoder, row.title, row.label, cells, average))
    return found


def _lines(edition: str) -> list[dict[str, str]]:
    with published_path(edition).open() as file:
        return list(csv.DictReader(file))


def _miou(row: SystemRow | None, name: str) -> float | None:
    return row.cells[name].miou if row and name in row.cells else None


def _apart(ours: float | None, theirs: float | None) -> tuple[float | None, float | None, float | None]:
    return ours, theirs, None if ours is None or theirs is None else ours - theirs


def _copied(miou: float) -> Cell:
    return Cell(miou, None, (), None, rates=1, diverged=0, failed=0, trials=(), remarks=())
