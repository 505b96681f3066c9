"""sweep, resume."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.orchestrator.commands.options import (
    CacheDir,
    ConfigDir,
    DataDir,
    Overrides,
    Storage,
    TrackingUri,
    WeightsDir,
)
from cryobench.orchestrator.commands.output import console, console_of_its_own
from cryobench.orchestrator.commands.planning import print_counts, print_missing
from cryobench.orchestrator.formatting import masked

if TYPE_CHECKING:
    from cryobench.orchestrator.places import Places
    from cryobench.orchestrator.sweep.plan import Plan

RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Run deterministic failures again.")]
RetryPruned = Annotated[
    bool, typer.Option("--retry-pruned", help="Train what was stopped early to its end, whatever the scheduler.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster, e.g. HOST:6379 or auto.", show_default="this machine")
]
Partial = Annotated[
    bool, typer.Option("--partial", help="Run what is ready although data or weights of others are missing.")
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Refuse if another process drives this sweep, instead of waiting for its end.")
]


@dataclass(frozen=True)
class Retry:
    """Which trials are run again that would be left as they are."""

    failed: bool
    pruned: bool


def register(app: typer.Typer) -> None:
    """Add these commands to the top level."""
    app.command()(sweep)
    app.command()(resume)


def sweep(
    overrides: Overrides = None,
    storage: Storage = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    weights_dir: WeightsDir = None,
    config_dir: ConfigDir = None,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    retry_failed: RetryFailed = False,
    retry_pruned: RetryPruned = False,
    partial: Partial = False,
    no_wait: NoWait = False,
) -> None:
    """Run a sweep: everything that is not complete, continuing what was begun."""
    from cryobench.conf.compose import load_sweep
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.sweep.plan import make_plan

    where = places(storage, data_dir, cache_dir, weights_dir, config_dir)
    made = make_plan(load_sweep(overrides or [], where.config_dir), where)
    _run([made], where, tracking_uri, address, Retry(retry_failed, retry_pruned), partial, wait=not no_wait)


def resume(
    name: Annotated[str, typer.Argument(help="The sweep's name, as in cryobench leaderboard.")],
    storage: Storage = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    weights_dir: WeightsDir = None,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    retry_failed: RetryFailed = False,
    retry_pruned: RetryPruned = False,
    partial: Partial = False,
    no_wait: NoWait = False,
) -> None:
    """Continue a sweep of this storage as it was asked for, without repeating its overrides."""
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.sweep.plan import make_plan
    from cryobench.orchestrator.sweep_record import read_sweep

    where = places(storage, data_dir, cache_dir, weights_dir)
    where.bring_sweeps()
    record = read_sweep(where.storage, name)
    plans = [make_plan(request, where) for request in record.requests]
    _run(plans, where, tracking_uri, address, Retry(retry_failed, retry_pruned), partial, wait=not no_wait)


def _run(
    plans: list[Plan],
    where: Places,
    tracking_uri: str | None,
    address: str | None,
    retry: Retry,
    partial: bool,
    *,
    wait: bool,
) -> None:
    for made in plans:
        if made.blocked and not partial:
            print_counts(made)
            print_missing(made)
            console.print("Nothing was run. Bring what is missing, or add --partial to run the rest.")
            raise typer.Exit(2)
    where.prepare_storage()
    for made in plans:
        _run_one(made, where, tracking_uri, address, retry, wait)


def _run_one(
    made: Plan, where: Places, tracking_uri: str | None, address: str | None, retry: Retry, wait: bool
) -> None:
    from cryobench.orchestrator.results.leaderboard import table_path
    from cryobench.orchestrator.results.tracking import default_uri
    from cryobench.orchestrator.sweep.driver import run_sweep
    from cryobench.orchestrator.sweep.failures import failure_groups

    uri = None if tracking_uri == "none" else tracking_uri or default_uri(where.storage)
    todo = made.to_run(retry.failed, retry.pruned)
    waiting = [t for t in made.trials if t.state == "failed" and t not in todo]
    complete = sum(t.state in ("completed", "diverged") for t in made.trials)
    pruned = [t for t in made.trials if t.state == "pruned" and t not in todo]
    console.print(
        f"Sweep {made.sweep.name}: {len(made.trials)} trials, {complete} complete, {len(todo)} to run"
        + (f", up to {made.to_suggest} to be suggested" if made.to_suggest else "")
        + (f", {len(made.blocked)} left out" if made.blocked else "")
        + "."
    )
    if waiting:
        console.print(f"{len(waiting)} failed before for reasons of their own and are not run without --retry-failed.")
    if pruned:
        console.print(f"{len(pruned)} were stopped early before and are not run without --retry-pruned.")
    outcome = run_sweep(
        made,
        where,
        console_of_its_own(),
        uri=uri,
        address=address,
        retry_failed=retry.failed,
        retry_pruned=retry.pruned,
        wait=wait,
    )
    counts = ", ".join(f"{count} {name}" for name, count in outcome.counts.items()) or "nothing left to run"
    console.print(f"Sweep {made.sweep.name}: {counts}.", highlight=False)
    storage = f"--storage {shlex.quote(str(where.storage_url or where.storage))}"
    options = where.options()
    if address is not None:
        options += f" --address {shlex.quote(address)}"
    if tracking_uri is not None:
        storage += f" --tracking-uri {shlex.quote(masked(tracking_uri))}"
        options += f" --tracking-uri {shlex.quote(masked(tracking_uri))}"
    if outcome.interrupted and not outcome.stopped:
        console.print(
            f"Interrupted. Go on with: cryobench resume {made.sweep.name} {options}", markup=False, soft_wrap=True
        )
        raise typer.Exit(130)
    failed = failure_groups(where.storage, made.trial_ids)
    for line in (line for group in failed for line in group.lines()):
        console.print(line, markup=False, soft_wrap=True)
    if outcome.stopped:
        console.print(f"Stopped: {outcome.stopped} Nothing is lost.", markup=False, soft_wrap=True)
    if failed or outcome.stopped:
        option = "--retry-failed " if any(group.waits_for_user for group in failed) else ""
        again = f"cryobench resume {made.sweep.name} {option}{options}"
        console.print(f"Then: {again}", markup=False, soft_wrap=True)
    console.print(f"Leaderboard: {table_path(where.storage)}", soft_wrap=True, highlight=False)
    if uri:
        console.print(f"MLflow: cryobench ui {storage}", soft_wrap=True, highlight=False)
        if not outcome.tracked:
            console.print(f"MLflow lacks some of it; then: cryobench sync {storage}", soft_wrap=True, highlight=False)
    if failed or outcome.stopped:
        raise typer.Exit(1)
