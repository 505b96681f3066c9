"""ui: MLflow's pages over the embedded store or a database; a server has its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from typing import Annotated

import typer

from cryobench.conf.errors import ConfigError
from cryobench.orchestrator.commands.options import Storage, TrackingUri
from cryobench.orchestrator.commands.output import console
from cryobench.orchestrator.formatting import masked

#: Without the parameter MLflow opens on its pages about language models.
_PAGE = "/#/experiments?workflowType=machine_learning"
_STORES = ("sqlite", "postgresql", "mysql", "mssql", "file")


def ui(
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
) -> None:
    """Start the MLflow UI, on this machine's own address only unless told otherwise."""
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.results.tracking import default_uri, mend_artifact_locations

    if tracking_uri and tracking_uri.startswith(("http://", "https://")):
        _tell_of_server(tracking_uri)
        return
    if tracking_uri == "none" or (tracking_uri and "://" in tracking_uri and not tracking_uri.startswith(_STORES)):
        raise ConfigError(
            f"--tracking-uri {masked(tracking_uri)}: nothing to show there. Expected a store that the UI can open, "
            "such as sqlite:///mlflow.db or postgresql://USER:PASSWORD@HOST/NAME, or the address of a server."
        )
    where = places(storage)
    if tracking_uri is None and not (where.storage / "mlflow.db").exists():
        raise ConfigError(
            f"No MLflow database under {where.storage}. Run a sweep with this --storage, or cryobench sync."
        )
    uri = tracking_uri or default_uri(where.storage)
    _require_free(host, port)
    if tracking_uri is None:
        mend_artifact_locations(where.storage, lambda text: console.print(text, soft_wrap=True, markup=False))
    console.print(
        f"MLflow UI of {masked(uri)}: http://{host}:{port}{_PAGE} (Ctrl-C ends it)",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]
    artifacts = ["--default-artifact-root", (where.storage / "mlartifacts").as_uri()]
    try:
        raise typer.Exit(_run_masked([*command, *artifacts], uri))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _tell_of_server(uri: str) -> None:
    address = masked(uri)
    page = re.sub(r"://[^/@]*@", "://", address).rstrip("/") + _PAGE
    console.print(
        f"{address} is an MLflow server and has its own UI: {page} (nothing to start here)",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _require_free(host: str, port: int) -> None:
    """Raise ConfigError where MLflow could not listen; it would say so in a traceback, after seconds."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as attempt:
            attempt.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server does: a port just left is free
            attempt.bind(address)
    except (OSError, UnicodeError, ValueError) as error:  # the latter two: what can be no name of a host
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({reason}). Give another --port or --host, or end what listens there."
        ) from error


def _run_masked(command: list[str], uri: str) -> int:
    """Run MLflow on ``uri``; the password is neither among its arguments, where ps shows it, nor in what it prints."""
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(masked(line, uri))
            sys.stderr.flush()
    return process.returncode
