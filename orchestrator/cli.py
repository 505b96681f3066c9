"""The `cryobench` command. Modules of the commands import torch, ray and mlflow only when they run."""

from __future__ import annotations

import io
import os
import re
import sys

import typer

from cryobench.conf.errors import ConfigError, CryobenchError, HungReadError, disk_full
from cryobench.orchestrator.commands import (
    compare,
    data,
    encoders,
    logs,
    mlflow_ui,
    planning,
    prune,
    results,
    status_view,
    sweeps,
    tables,
    trials,
    weights,
)

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

app = typer.Typer(
    name="cryobench",
    help="Sweeps of geo-foundation-model encoders over cryosphere segmentation data sets.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(planning.plan)
sweeps.register(app)
app.command()(status_view.status)
app.command()(logs.logs)
app.command()(tables.leaderboard)
results.register(app)
app.command()(mlflow_ui.ui)
app.command()(compare.compare)
app.command()(prune.prune)
app.add_typer(trials.app, name="trial")
app.add_typer(data.app, name="data")
app.add_typer(encoders.app, name="encoders")
app.add_typer(weights.app, name="weights")


def main() -> None:
    """Entry point: explained errors become one message and exit code 1 (2 for a wrong request)."""
    # Nothing phones home.
    for variable, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():
        os.environ.setdefault(variable, value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold what is no Unicode
    try:
        app()
    except CryobenchError as error:
        _complain(error)
        if isinstance(error, HungReadError):
            sys.stdout.flush()
            os._exit(1)  # the thread that hangs would be waited for
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        explained = disk_full(error, error.filename or "a file")
        if explained is None:
            raise
        _complain(explained)
        sys.exit(1)


def _complain(error: Exception) -> None:
    """One message; what a terminal would obey, or cannot show, is spelt out: names in it may come from anywhere."""
    text = str(error).encode("utf-8", "backslashreplace").decode()
    print("Error: " + _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text), file=sys.stderr)
