"""sync, ui."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from cryobench.orchestrator.commands.options import Storage, TrackingUri
from cryobench.orchestrator.commands.output import bar, console


def register(app: typer.Typer) -> None:
    """Add these commands to the top level."""
    app.command()(sync)
    app.command()(ui)


def sync(storage: Storage = None, tracking_uri: TrackingUri = None) -> None:
    """Rebuild MLflow and the leaderboard from the trial folders; doing it twice changes nothing."""
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.results.leaderboard import table_path
    from cryobench.orchestrator.results.reconcile import sync as synchronise
    from cryobench.orchestrator.results.tracking import default_uri

    where = places(storage)
    uri = None if tracking_uri == "none" else tracking_uri or default_uri(where.storage)
    with bar("Trials") as progress:
        done = synchronise(where.storage, uri, progress)
    for problem in done.problems.values():
        console.print(f"Warning: {problem}", markup=False, highlight=False, soft_wrap=True)
    if where.storage_url:
        from cryobench.workers.record.mirror import Mirror

        Mirror(where.storage_url).push_projections(where.storage)
    console.print(
        f"{done.trials} trials of {done.sweeps} sweeps, {done.rows} rows in {table_path(where.storage)}", soft_wrap=True
    )
    if done.tracking_error:
        from cryobench.conf.errors import TrackingError

        raise TrackingError(f"The leaderboard is rebuilt; MLflow is not. {done.tracking_error}")


def ui(
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port")] = 5000,
) -> None:
    """Start the MLflow UI, on this machine's own address only unless told otherwise."""
    from cryobench.conf.errors import ConfigError
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.results.tracking import default_uri

    where = places(storage)
    if tracking_uri is None and not (where.storage / "mlflow.db").exists():
        raise ConfigError(
            f"No MLflow database under {where.storage}. Run a sweep with this --storage, or cryobench sync."
        )
    uri = tracking_uri or default_uri(where.storage)
    # Without the parameter MLflow opens on its pages about language models.
    page = f"http://{host}:{port}/#/experiments?workflowType=machine_learning"
    console.print(f"MLflow UI of {uri}: {page} (Ctrl-C ends it)", soft_wrap=True, highlight=False)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    artifacts = ["--default-artifact-root", (where.storage / "mlartifacts").as_uri()]
    with_workers = ["--workers", "1"]
    try:
        raise typer.Exit(subprocess.call([*command, *artifacts, *with_workers]))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
