"""plan: what a sweep would run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cryobench.orchestrator.commands.options import (
    CacheDir,
    ConfigDir,
    DataDir,
    Json,
    Overrides,
    Storage,
    WeightsDir,
)
from cryobench.orchestrator.commands.output import console, print_json

if TYPE_CHECKING:
    from cryobench.orchestrator.sweep.plan import Plan


def plan(
    overrides: Overrides = None,
    storage: Storage = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    weights_dir: WeightsDir = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    full: Annotated[bool, typer.Option("--all", help="Every trial, however many.")] = False,
) -> None:
    """Show the trials of a sweep, what is complete and what is missing, without running anything."""
    from cryobench.conf.compose import load_sweep
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.sweep.plan import make_plan

    where = places(storage, data_dir, cache_dir, weights_dir, config_dir)
    made = make_plan(load_sweep(overrides or [], where.config_dir), where)
    if json:
        print_json(made.as_json())
        return
    _print_trials(made, len(made.trials) if full else 40)
    print_counts(made)
    print_missing(made)


def print_counts(made: Plan) -> None:
    """Trials by encoder, data set, regime and state."""
    for key, counts in made.counts().items():
        line = ", ".join(f"{name} {count}" for name, count in counts.items())
        console.print(f"[bold]{key}[/]: {line}", highlight=False)
    console.print(f"[bold]total[/]: {len(made.trials)}", highlight=False)


def print_missing(made: Plan) -> None:
    """What has to be brought before some of the trials can run."""
    for message, count in made.missing().items():
        console.print(f"[yellow]missing[/] for {count} trials: {escape(message)}", highlight=False, soft_wrap=True)


def _print_trials(made: Plan, limit: int) -> None:
    table = Table(title=f"Sweep {made.sweep.name}: {len(made.trials)} trials", title_justify="left")
    for name in ("trial", "encoder", "data set", "regime", "lr", "seed", "state"):
        table.add_column(name, no_wrap=True)
    for trial in made.trials[:limit]:
        spec = trial.spec
        state = f"{trial.state} {trial.epoch}/{spec.protocol.epochs}" if trial.state == "begun" else trial.state
        shown = "(not known yet)" if trial.provisional else spec.trial_id
        table.add_row(
            shown, spec.encoder.name, spec.dataset.name, spec.regime.name, f"{spec.lr:g}", str(spec.seed), state
        )
    console.print(table)
    if len(made.trials) > limit:
        console.print(f"… and {len(made.trials) - limit} more; --all shows them.")
