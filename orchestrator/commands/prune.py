"""prune: free what a sweep's finished trials no longer need."""

from __future__ import annotations

from typing import Annotated

import typer

from cryobench.orchestrator.commands.options import Json, Storage
from cryobench.orchestrator.commands.output import console, print_json


def prune(
    sweep: Annotated[str, typer.Argument(help="A sweep of this storage.")],
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="Trials of each cell whose best weights stay, by validation.")
    ] = 1,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are only listed.")] = False,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """List what a sweep's finished trials no longer need, and remove it with --yes.

    That is the best weights of all trials but those that a table names and the best of each cell by validation, and
    what interruptions left behind. Results, histories and pictures stay.
    """
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.results.pruning import files_here, files_in_store, plan_pruning
    from cryobench.orchestrator.results.pruning import prune as prune_trial
    from cryobench.orchestrator.sweep_record import read_sweep
    from cryobench.workers.record.mirror import Mirror

    where = places(storage)
    where.bring_all()
    trials = read_sweep(where.storage, sweep).trials
    mirror = Mirror(where.storage_url) if where.storage_url else None
    files = files_in_store(mirror) if mirror else files_here(where.storage, trials)
    removals = plan_pruning(where.storage, trials, files, keep)
    if yes:
        for removal in removals:
            prune_trial(where.storage, removal, mirror)
    total, count = sum(r.bytes for r in removals), sum(len(r.files) for r in removals)
    if json:
        listed = [{"trial_id": r.trial_id, "files": dict(r.files), "weights": r.weights} for r in removals]
        print_json({"sweep": sweep, "keep": keep, "trials": listed, "bytes": total, "removed": yes})
        return
    for removal in removals:
        console.print(f"{removal.trial_id} {removal.label}", highlight=False, markup=False, soft_wrap=True)
        for name, size in removal.files.items():
            console.print(f"  {name}: {_size(size)}", highlight=False, markup=False)
    done = "removed" if yes else "nothing was removed; --yes removes them"
    console.print(
        f"{count} files of {len(removals)} of {len(trials)} trials, {_size(total)}"
        + (f": {done}." if removals else ": nothing to remove."),
        highlight=False,
        soft_wrap=True,
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
