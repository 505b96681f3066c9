"""sync: MLflow and the leaderboard rebuilt from the trial folders."""

from __future__ import annotations

import typer

from cryobench.orchestrator.commands.options import Storage, TrackingUri
from cryobench.orchestrator.commands.output import bar, console


def register(app: typer.Typer) -> None:
    """Add these commands to the top level."""
    app.command()(sync)


def sync(storage: Storage = None, tracking_uri: TrackingUri = None) -> None:
    """Rebuild MLflow and the leaderboard from the trial folders; doing it twice changes nothing."""
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.results.leaderboard import table_path
    from cryobench.orchestrator.results.reconcile import sync as synchronise
    from cryobench.orchestrator.results.tracking import default_uri
    from cryobench.workers.record.mirror import Mirror

    where = places(storage)
    where.bring_all()
    mirror = Mirror(where.storage_url) if where.storage_url else None
    uri = None if tracking_uri == "none" else tracking_uri or default_uri(where.storage)
    messages: list[str] = []
    with bar("Trials") as progress:
        done = synchronise(where.storage, uri, progress, messages.append, mirror.url if mirror else None)
    for text in messages:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if mirror:
        mirror.push_projections(where.storage)
    removed = f", {done.removed_runs} superfluous MLflow runs deleted" if done.removed_runs else ""
    console.print(
        f"{done.trials} trials of {done.sweeps} sweeps, {done.rows} rows in {table_path(where.storage)}{removed}",
        soft_wrap=True,
    )
    if done.tracking_error:
        from cryobench.conf.errors import TrackingError

        raise TrackingError(f"The leaderboard is rebuilt; MLflow is not. {done.tracking_error}")
    if done.problems:
        raise typer.Exit(1)
