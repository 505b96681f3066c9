"""compare: two trials side by side."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cryobench.orchestrator.commands.options import Json, Storage
from cryobench.orchestrator.commands.output import console, print_json

if TYPE_CHECKING:
    from cryobench.workers.record.comparison import Comparison
    from cryobench.workers.record.folder import TrialFolder

Trial = Annotated[str, typer.Argument(help="A trial id of this storage, or a trial's folder anywhere.")]
_SHOWN = 12


def compare(first: Trial, second: Trial, storage: Storage = None, json: Json = False) -> None:
    """Show two trials' metric histories and weights side by side, and where they first differ (then exit with 1)."""
    from cryobench.orchestrator.places import places
    from cryobench.workers.record.comparison import compare as compare_trials
    from cryobench.workers.record.folder import TrialFolder

    where = places(storage)

    def folder(text: str) -> TrialFolder:
        path = Path(text)
        if os.path.isdir(text):  # false also for what no path can be
            return TrialFolder.at(path.resolve())
        where.bring_trials([text])
        return TrialFolder(where.storage, text)

    found = compare_trials(folder(first), folder(second))
    if json:
        print_json({**asdict(found), "first_difference": found.first_difference, "same": found.same})
    else:
        _print(found, first, second)
    if not found.same:
        raise typer.Exit(1)


def _print(found: Comparison, first: str, second: str) -> None:
    _print_pairs("asked for differently", found.asked)
    table = Table("epoch", title="Training", title_justify="left")
    names = list(dict.fromkeys(name for pair in found.epochs for name in pair.values))
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("", justify="right")
    table.add_column("same")
    for pair in found.epochs:
        cells = [_text(value) for name in names for value in pair.values.get(name, (None, None))]
        table.add_row(str(pair.epoch), *cells, "yes" if pair.same else "no")
    console.print(table)
    _print_pairs("results that differ", found.outcome)
    if found.weights is None:
        console.print("Weights: not compared; one of the two has no best checkpoint.")
        for why in found.pruned:
            console.print(why, highlight=False, markup=False, soft_wrap=True)
    elif not found.weights:
        console.print(f"Weights: all {found.tensors} tensors of the best checkpoints are the same, bit for bit.")
    else:
        console.print(f"Weights: {len(found.weights)} tensors differ.")
        for tensor in found.weights[:_SHOWN]:
            share = f"{tensor.differing:,} of {tensor.elements:,} values"
            console.print(f"  {tensor.name}: {share}, at most {tensor.largest:.3g}", highlight=False, markup=False)
    if found.same:
        verdict = "the same, bit for bit"
    elif found.first_difference is not None:
        verdict = f"different from epoch {found.first_difference} on"
    else:
        verdict = "trained alike, but their results or weights differ"
    console.print(f"{Path(first).name} and {Path(second).name}: {verdict}.", highlight=False, soft_wrap=True)


def _print_pairs(title: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    for name, (a, b) in pairs.items():
        console.print(f"{title}: {name}: {a} | {b}", highlight=False, markup=False, soft_wrap=True)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"
