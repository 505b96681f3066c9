"""status: where a sweep stands, from any machine that sees its storage."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cryobench.orchestrator.commands.options import Json, Storage
from cryobench.orchestrator.commands.output import console, print_json
from cryobench.orchestrator.formatting import duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from cryobench.orchestrator.sweep.status import SweepStatus
    from cryobench.orchestrator.sweep.survey import TrialView

#: How often --watch looks: at a folder that is seen directly, and at an object store, whose listing costs requests.
_EVERY_S, _EVERY_AWAY_S = 2.0, 15.0
_COLOURS = {"completed": "green", "running": "cyan", "diverged": "yellow", "pruned": "blue", "failed": "red"}
_SHOWN = ("running", "completed", "diverged", "pruned", "failed", "expired", "waiting")
#: Characters of a trial id, which are shown in full however narrow the terminal is.
_ID = 16
_MOST_TRIALS, _MOST_GROUPS, _MOST_IDS = 24, 12, 4


def status(
    name: Annotated[str, typer.Argument(help="The sweep's name, as in cryobench leaderboard.", metavar="SWEEP")],
    storage: Storage = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until Ctrl-C.")] = False,
    json: Json = False,
    full: Annotated[bool, typer.Option("--all", help="Every running trial, however many.")] = False,
) -> None:
    """Show where a sweep stands: running, ended, failed, waiting; its rate, expected end and nodes."""
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.sweep.status import sweep_status
    from cryobench.orchestrator.sweep.suggestions import left_to_suggest
    from cryobench.orchestrator.sweep.survey import Survey
    from cryobench.orchestrator.sweep_record import read_sweep

    where = places(storage)
    survey = Survey(where.storage)

    def look() -> SweepStatus:
        where.bring_sweeps()
        trials = read_sweep(where.storage, name).trials
        where.bring_trials(survey.unfinished(trials))
        return sweep_status(name, survey.look(trials), to_suggest=left_to_suggest(where.storage, name))

    if not watch:
        found = look()
        if json:
            print_json(found.as_json())
        else:
            console.print(render(found, len(found.running) if full else _MOST_TRIALS))
        return
    with suppress(KeyboardInterrupt):
        _watch(look, _EVERY_AWAY_S if where.storage_url else _EVERY_S, full)


def _watch(look: Callable[[], SweepStatus], every_s: float, full: bool) -> None:
    """Show what ``look`` finds until every trial has ended; where there is no terminal, one below the other."""
    from rich.live import Live
    from rich.text import Text

    from cryobench.conf.errors import CryobenchError

    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            try:
                found = look()
            except (CryobenchError, OSError) as error:  # a storage that is away for a while
                shown: RenderableType = Text(f"{error} Looking again every {every_s:g} s.")
                over = False
            else:
                shown = render(found, len(found.running) if full else _MOST_TRIALS)
                over = not (found.left or found.to_suggest)
            if live is not None:
                live.update(shown, refresh=True)
            else:
                console.print(shown)
            if over:
                return
            time.sleep(every_s)


def render(found: SweepStatus, most: int = _MOST_TRIALS) -> RenderableType:
    """The status as a terminal shows it."""
    from rich.console import Group

    parts: list[RenderableType] = [_heading(found), _bar(found)]
    if found.running:
        parts += [_running(found, most)]
    if found.nodes:
        parts += [_nodes(found)]
    if found.expired:
        parts += [_expired(found)]
    if found.failures:
        parts += [_failures(found)]
    return Group(*parts)


def _heading(found: SweepStatus) -> RenderableType:
    from rich.text import Text

    text = Text.assemble((f"Sweep {found.name}", "bold"), f": {found.finished} of {found.total} trials done")
    if found.to_suggest:
        text.append(f", up to {found.to_suggest} to be suggested")
    if found.per_hour:
        text.append(f" · {found.per_hour:.3g} an hour (over {duration(found.window_s)})")
    if found.expected_end is not None:
        end, left = time.localtime(found.expected_end), found.expected_end - found.time
        text.append(f" · about {duration(left)} left, until {time.strftime('%a %d %b %H:%M', end)}")
    elif not found.running and found.left:
        text.append(" · nothing is running", style="yellow")
    return text


def _bar(found: SweepStatus) -> RenderableType:
    from rich.text import Text

    text, width = Text(), 40
    cells = 0
    for state in ("completed", "diverged", "pruned", "failed", "running"):
        until = round(width * sum(found.counts.get(s, 0) for s in _until(state)) / max(1, found.total))
        text.append("━" * (until - cells), style=_COLOURS[state])
        cells = until
    text.append("━" * (width - cells), style="bright_black")
    known = [state for state in _SHOWN if found.counts.get(state)]
    for state in [*known, *sorted(found.counts.keys() - set(_SHOWN))]:
        text.append("  ")
        text.append(f"{found.counts[state]} {state}", style=_COLOURS.get(state, ""))
    return text


def _until(state: str) -> tuple[str, ...]:
    order = ("completed", "diverged", "pruned", "failed", "running")
    return order[: order.index(state) + 1]


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for column in columns:
        numeric = column.startswith(">")
        least = _ID if column in ("running", "expired") else 6 if numeric else None
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(column.removeprefix(">"), justify=justify, no_wrap=True, min_width=least)
    return table


def _add_row(table: Table, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))  # as they are: a message may hold brackets


def _running(found: SweepStatus, most: int) -> RenderableType:
    table = _table("running", "what", "node", "device", ">epoch", ">an epoch", ">left")
    for view in found.running[:most]:
        _add_row(table, view.trial_id, view.label, view.host, view.device, *_progress(view))
    if len(found.running) > most:
        _add_row(table, "…", f"and {len(found.running) - most} more; --all shows them", "", "", "", "", "")
    return table


def _progress(view: TrialView) -> tuple[str, str, str]:
    pace = view.seconds_an_epoch
    return (
        f"{view.epoch}/{view.epochs}" if view.epochs else "",
        "" if pace is None else f"{pace:.3g} s",
        "" if view.seconds_left is None else duration(view.seconds_left),
    )


def _nodes(found: SweepStatus) -> RenderableType:
    columns = (">running", f">ended in {duration(found.window_s)}", ">CPU", ">memory", ">GPU", ">GPU memory")
    table = _table("node", *columns)
    for node in found.nodes:
        loads = (node.cpu, node.memory, node.gpu, node.gpu_memory)
        shown = ("–" if value is None else f"{value:.0f} %" for value in loads)
        _add_row(table, node.name or "not known yet", str(node.running), str(node.ended), *shown)
    return table


def _expired(found: SweepStatus) -> RenderableType:
    table = _table("expired", "what", "node", ">epoch", "why")
    for view in found.expired[:_MOST_GROUPS]:
        _add_row(table, view.trial_id, view.label, view.host, _progress(view)[0], view.message or "")
    if len(found.expired) > _MOST_GROUPS:
        _add_row(table, "…", f"and {len(found.expired) - _MOST_GROUPS} more; --json has them all", "", "", "")
    return table


def _failures(found: SweepStatus) -> RenderableType:
    table = _table("failed", ">trials", "which")
    table.add_column("message", overflow="fold")
    for group in found.failures[:_MOST_GROUPS]:
        named = " ".join(group.trials[:_MOST_IDS]) + (" …" if len(group.trials) > _MOST_IDS else "")
        _add_row(table, group.kind, str(len(group.trials)), named, group.message)
    if len(found.failures) > _MOST_GROUPS:
        _add_row(table, "…", "", f"and {len(found.failures) - _MOST_GROUPS} more kinds; --json has them all", "")
    return table
