"""A table of results in words: title, header, lines and notes, for the terminal and for Markdown, and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cryobench.orchestrator.formatting import percent
from cryobench.orchestrator.results.cells import Cell
from cryobench.orchestrator.results.published import Beside
from cryobench.orchestrator.results.ranking import ResultTable, SystemRow

LEGEND = (
    "± sample standard deviation over the seeds in brackets · † trials that diverged, tested in their best validated "
    "state if there is one · ✗ trials that failed"
)


def title(table: ResultTable) -> str:
    """What the table compares, and what tells it from others."""
    parts = [f"Test mIoU (%) · {table.regime}"]
    if table.edition:
        parts.append(f"edition {table.edition}")
    if table.rates > 1:
        parts.append(f"best of up to {table.rates} learning rates by validation")
    parts.append(f"protocol {table.protocol}")
    if table.view != "either":
        parts.append(f"view {table.view}")
    if table.statistics != "training":
        parts.append(f"{table.statistics} statistics")
    if table.generated:
        parts.append("generated data")
    parts += [f"{name} from store {digest[:8]}" for name, digest in table.stores.items()]
    return " · ".join(parts)


def header(table: ResultTable) -> list[str]:
    """Column names."""
    return ["encoder", *columns(table), "avg_miou", "avg_rank"]


def columns(table: ResultTable) -> list[str]:
    """The data sets that are averaged, then others that rows have."""
    more = sorted({name for row in table.rows for name in row.cells} - set(table.datasets))
    return [*table.datasets, *more]


def line(table: ResultTable, row: SystemRow) -> list[str]:
    """The cells of one row; instead of the average of an incomplete one, how many of the data sets it has."""
    have = sum(row.cells[name].miou is not None for name in table.datasets if name in row.cells)
    average = percent(row.avg_miou) if have == len(table.datasets) else f"{have} of {len(table.datasets)}"
    cells = [cell_text(row.cells.get(name)) for name in columns(table)]
    return [name_of(row), *cells, average, percent(row.avg_rank)]


def name_of(row: SystemRow | Beside) -> str:
    """A system with what tells its rows apart."""
    return f"{row.title} ({row.label})" if row.label else row.title


def cell_text(cell: Cell | None) -> str:
    """``54.32 ±0.41 (3) †1 ✗2``: mean, spread and number of seeds, how many of them diverged, trials that failed."""
    if cell is None:
        return percent(None)
    text = percent(cell.miou)
    if cell.spread is not None:
        text += f" ±{cell.spread:.2f} ({len(cell.seeds)})"
    if cell.diverged:
        text += f" †{cell.diverged}"
    if cell.failed:
        text += f" ✗{cell.failed}"
    return text


def notes(table: ResultTable) -> Iterator[str]:
    """What a reader must know beside the numbers."""
    cells = [cell for row in table.rows for cell in row.cells.values()]
    if any(cell.spread is not None or cell.diverged or cell.failed for cell in cells):
        yield LEGEND
    if table.rates > 1:
        for row in table.rows:
            rates = ", ".join(f"{name} {cell.lr:g}" for name, cell in row.cells.items() if cell.lr is not None)
            if rates:
                yield f"Learning rates of {name_of(row)}: {rates}"
    for row in table.rows:
        for name, cell in row.cells.items():
            for remark in cell.remarks:
                yield f"{name_of(row)}, {name}: {remark}"
    if any(row.weights == "random" for row in table.rows):
        yield "Systems marked so ran with random weights: these are not benchmark results."
    if table.generated:
        yield "The data are generated: these are not benchmark results."


def markdown(table: ResultTable) -> str:
    """The table in Markdown."""
    lines = [f"### {title(table)}", "", *_rows([header(table), *(line(table, row) for row in table.rows)])]
    remarks = [f"- {note}" for note in notes(table)]
    return "\n".join([*lines, *(["", *remarks] if remarks else [])]) + "\n"


def beside_header(datasets: tuple[str, ...]) -> list[str]:
    """Column names of ours beside the published table."""
    return ["encoder", "number", *datasets, "avg_miou"]


def beside_lines(one: Beside) -> Iterator[list[str]]:
    """Ours, the published one and the difference, as far as they are there."""
    columns = [*one.cells.values(), one.average]
    for i, what in enumerate(("rerun", "copied", "difference")):
        values = [column[i] for column in columns]
        if any(value is not None for value in values):
            shown = [f"{v:+.2f}" if v is not None and what == "difference" else percent(v) for v in values]
            yield [name_of(one), what, *shown]


def beside_markdown(what: str, datasets: tuple[str, ...], found: list[Beside]) -> str:
    """Ours beside the published table in Markdown."""
    rows = [beside_header(datasets), *(row for one in found for row in beside_lines(one))]
    return "\n".join([f"### {what}", "", *_rows(rows)]) + "\n"


def as_json(table: ResultTable) -> dict[str, Any]:
    """The plain form of a table."""
    return {
        "edition": table.edition,
        "regime": table.regime,
        "protocol": table.protocol,
        "view": table.view,
        "statistics": table.statistics,
        "generated_data": table.generated,
        "stores": dict(table.stores),
        "datasets": list(table.datasets),
        "encoders": [
            {
                "encoder": row.encoder,
                "label": row.label,
                "weights": row.weights,
                **{name: row.cells[name].miou if name in row.cells else None for name in columns(table)},
                "avg_miou": row.avg_miou,
                "avg_rank": row.avg_rank,
                "lr": {name: cell.lr for name, cell in row.cells.items() if cell.lr is not None},
                "cells": {name: _cell_json(cell) for name, cell in row.cells.items()},
            }
            for row in table.rows
        ],
        "notes": list(notes(table)),
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "miou": cell.miou,
        "spread": cell.spread,
        "seeds": list(cell.seeds),
        "lr": cell.lr,
        "diverged": cell.diverged,
        "failed": cell.failed,
        "trials": list(cell.trials),
        "remarks": list(cell.remarks),
    }


def _rows(rows: list[list[str]]) -> list[str]:
    head, *rest = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *rest]
