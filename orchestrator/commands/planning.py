"""plan: what a sweep would run, how long that takes, and whether its first steps work."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cryobench.orchestrator.commands.options import (
    CacheDir,
    ConfigDir,
    DataDir,
    Json,
    Overrides,
    Storage,
    WeightsDir,
)
from cryobench.orchestrator.commands.output import console, console_of_its_own, print_json
from cryobench.orchestrator.formatting import duration

if TYPE_CHECKING:
    from cryobench.orchestrator.places import Places
    from cryobench.orchestrator.sweep.expected_cost import CostBook
    from cryobench.orchestrator.sweep.forecast import Forecast
    from cryobench.orchestrator.sweep.plan import Plan
    from cryobench.orchestrator.sweep.smoke_run import SmokeReport

#: Which durations a simulation went by, in words.
_SOURCES = {
    "recorded": "as recorded on this card",
    "scaled": "as recorded on another card, scaled by their peaks",
    "estimated": "estimated from multiply-adds",
    "unknown": "left out: nothing is known of them",
}


def plan(
    overrides: Overrides = None,
    storage: Storage = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    weights_dir: WeightsDir = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    full: Annotated[bool, typer.Option("--all", help="Every trial, however many.")] = False,
    simulated: Annotated[
        str | None,
        typer.Option(
            "--simulate",
            help="How long it takes on these nodes: 8xH100, 2x8xH100 (two of eight), 16xCPU, or a .yaml or .json file.",
            metavar="NODES",
        ),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Run one step of every system and data set; nothing is kept.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster for --smoke, e.g. HOST:6379.", show_default="this machine"),
    ] = None,
) -> None:
    """Show the trials of a sweep, what is complete and what is missing; with --smoke try each system's first step."""
    from cryobench.conf.compose import load_sweep
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.sweep.expected_cost import CostBook
    from cryobench.orchestrator.sweep.forecast import forecast
    from cryobench.orchestrator.sweep.plan import make_plan

    where = places(storage, data_dir, cache_dir, weights_dir, config_dir)
    made = make_plan(load_sweep(overrides or [], where.config_dir), where)
    where.bring_table()
    book = CostBook(where)
    expected = forecast(made.to_run(), book)
    reports = _smoke(made, where, address, quiet=json) if smoke else []
    if json:
        more: dict[str, Any] = {"forecast": expected.as_json()}
        if simulated is not None:
            more["simulation"] = _simulate(made, where, book, simulated)
        if smoke:
            more["smoke"] = [vars(report) for report in reports]
        print_json(made.as_json() | more)
    elif smoke:
        _print_smoke(reports)
    elif simulated is not None:
        _print_simulation(_simulate(made, where, book, simulated), simulated)
    else:
        _print_trials(made, len(made.trials) if full else 40)
        print_counts(made)
        print_missing(made)
        _print_forecast(made, expected)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def print_counts(made: Plan) -> None:
    """Trials by encoder, data set, regime and state."""
    for key, counts in made.counts().items():
        line = ", ".join(f"{name} {count}" for name, count in counts.items())
        console.print(f"[bold]{key}[/]: {escape(line)}", highlight=False, markup=True)
    more = f", and up to {made.to_suggest} to be suggested" if made.to_suggest else ""
    console.print(f"[bold]total[/]: {len(made.trials)}{more}", highlight=False, markup=True)


def print_missing(made: Plan) -> None:
    """What has to be brought before some of the trials can run."""
    for message, count in made.missing().items():
        console.print(
            f"[yellow]missing[/] for {count} trials: {escape(message)}", highlight=False, markup=True, soft_wrap=True
        )


def _print_trials(made: Plan, limit: int) -> None:
    table = Table(title=f"Sweep {made.sweep.name}: {len(made.trials)} trials", title_justify="left")
    for name in ("trial", "encoder", "data set", "regime", "lr", "seed", "state"):
        table.add_column(name, no_wrap=True)
    for trial in made.trials[:limit]:
        spec = trial.spec
        part = f" {trial.epoch}/{spec.protocol.epochs}" if trial.state in ("begun", "pruned") else ""
        state = f"{trial.state}{part}"
        shown = "(not known yet)" if trial.provisional else spec.trial_id
        table.add_row(
            shown, spec.encoder.name, spec.dataset.name, spec.regime.name, f"{spec.lr:g}", str(spec.seed), state
        )
    console.print(table)
    if len(made.trials) > limit:
        console.print(f"… and {len(made.trials) - limit} more; --all shows them.")


def _print_forecast(made: Plan, expected: Forecast) -> None:
    """Hours and memory of what is left, as far as anything of it is recorded."""
    if not expected.left:
        return
    unit = "CPU hours" if expected.device is None or expected.device.startswith("cpu") else "GPU hours"
    if expected.known:
        share = "" if expected.known == expected.left else f", for {expected.known} of {expected.left} trials"
        text = f"{expected.hours:.1f} {unit} as recorded on {expected.device}{share}"
    else:
        text = "not known: no such trial has ended on this storage; --simulate 8xH100 estimates it"
    console.print(
        f"[bold]to run[/]: {expected.left} trials; {escape(text)}", highlight=False, markup=True, soft_wrap=True
    )
    if expected.memory_mb is not None:
        memory = f"{expected.memory_mb / 1e3:.1f} GB ({expected.memory_of})"
    else:
        memory = "not known: none of these is recorded here; --smoke measures it"
    console.print(f"[bold]largest memory[/]: {escape(memory)}", highlight=False, markup=True, soft_wrap=True)
    if expected.shares and made.sweep.resources.gpus_per_trial == "auto":
        parts = [
            f"{count} with {f'1/{round(1 / share)}' if share < 1 else 'one'}"
            for share, count in expected.shares.items()
        ]
        rest = expected.left - sum(expected.shares.values())
        parts += [f"{rest} begin with one, and are measured"] if rest else []
        console.print(f"[bold]GPUs a trial[/]: {', '.join(parts)}", highlight=False, markup=True, soft_wrap=True)


def _simulate(made: Plan, where: Places, book: CostBook, nodes_text: str) -> dict[str, Any]:
    from cryobench.orchestrator.sweep.forecast import Durations
    from cryobench.orchestrator.sweep.schedule import in_order
    from cryobench.orchestrator.sweep.simulate import read_nodes, simulate
    from cryobench.orchestrator.sweep.throughput import EFFICIENCY, MultiplyAdds

    nodes = read_nodes(nodes_text)
    durations = Durations(book, MultiplyAdds(where.cache_dir))
    known = durations.known([*made.to_run(), *made.blocked], nodes[0].card)
    ordered = in_order(known, lambda spec: durations.seconds_of(spec, nodes[0].card))
    found = simulate(ordered, nodes, made.sweep.resources, durations.seconds)
    return found.as_json() | {"sources": dict(durations.sources), "efficiency": EFFICIENCY}


def _print_simulation(found: dict[str, Any], nodes: str) -> None:
    held = f"one device each; the nodes are held {found['node_hours']:.1f}"
    lines = {
        "wall time": duration(found["wall_s"]),
        "utilisation": f"{100 * found['utilisation']:.0f} % of {found['at_once']} places",
        "hours of trials": f"{found['trial_hours']:.1f} ({held})",
        "longest trial": duration(found["longest_s"]),
    }
    console.print(f"[bold]{found['trials']} trials on {escape(nodes)}[/]", highlight=False, markup=True)
    for name, text in lines.items():
        console.print(f"  {name}: {text}", highlight=False)
    for source, count in found["sources"].items():
        share = f", at {100 * found['efficiency']:.0f} % of the card's peak" if source == "estimated" else ""
        console.print(f"  durations of {count} trials {_SOURCES[source]}{share}", highlight=False)


def _smoke(made: Plan, where: Places, address: str | None, *, quiet: bool) -> list[SmokeReport]:
    from cryobench.orchestrator.sweep.ray_session import ray_session
    from cryobench.orchestrator.sweep.smoke_run import representatives, run_smoke

    specs, shown = representatives(made.trials), console_of_its_own()

    def tell(report: SmokeReport) -> None:
        if not quiet:
            state = "ok" if report.ok else f"failed ({report.kind})"
            shown.print(f"{report.encoder} · {report.dataset}: {state}", highlight=False, markup=False)

    if not quiet:
        print_missing(made)
        console.print(f"One step of {len(specs)} pairs of system and data set; nothing is kept.", highlight=False)
    with TemporaryDirectory(prefix="cryobench-smoke-") as scratch, ray_session(address, Path(scratch) / "ray.log"):
        return run_smoke(specs, where, made.sweep.resources, tell)


def _print_smoke(reports: list[SmokeReport]) -> None:
    table = Table(title="One step of each", title_justify="left")
    for name in ("encoder", "data set", "regime", "node", "device", "a step", "memory"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("a step", "memory") else "left")
    for report in reports:
        cells: list[str | Text] = [report.encoder, report.dataset, report.regime, report.node]
        if report.found is not None:
            found = report.found
            cells += [found["device"], f"{found['step_s']:.3g} s", f"{found['peak_memory_mb'] / 1e3:.2f} GB"]
        else:
            cells += [Text(f"failed: {report.kind or ''}", style="red"), "", ""]
        table.add_row(*cells)
    console.print(table)
    for report in reports:
        if not report.ok:
            text = f"{report.encoder} · {report.dataset} · {report.regime}: {report.message}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    failed = sum(not report.ok for report in reports)
    told = f"{failed} of {len(reports)} would fail." if failed else f"All {len(reports)} take their first step."
    console.print(told, highlight=False)
