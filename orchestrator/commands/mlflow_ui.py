"""ui: MLflow's pages over the embedded store or a database; a server has its own."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from cryobench.conf.errors import ConfigError
from cryobench.orchestrator.commands.options import Storage, TrackingUri
from cryobench.orchestrator.commands.output import console
from cryobench.orchestrator.formatting import masked

#: Without the parameter MLflow opens on its pages about language models.
_PAGE = "/#/experiments?workflowType=machine_learning"
#: Who may log in, and by which password, with --auth; the database that MLflow keeps its users in.
_USER, _PASSWORD, _USERS = "CRYOBENCH_UI_USER", "CRYOBENCH_UI_PASSWORD", "mlflow-users.db"
#: Characters of a password, as MLflow itself demands.
_SHORTEST = 12
_STORES = ("sqlite", "postgresql", "mysql", "mssql", "file")


def ui(
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
    auth: Annotated[
        bool,
        typer.Option(
            "--auth", help=f"Ask who is there: the user in ${_USER} (or admin) with the password in ${_PASSWORD}."
        ),
    ] = False,
    artifacts: Annotated[
        list[Path] | None,
        typer.Option("--artifacts", help="Show artifacts in this folder too, e.g. of another storage. Repeatable."),
    ] = None,
) -> None:
    """Start the MLflow UI, on this machine's own address only unless told otherwise."""
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.results import served_ui
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
    users = None
    if auth:
        users = (where.storage / _USERS, os.environ.get(_USER) or "admin")
        password = _password(users[1])
        where.prepare_storage()
        served_ui.set_password(*users, password)
    if tracking_uri is None:
        mend_artifact_locations(where.storage, _say)
    _say(f"MLflow UI of {masked(uri)}: http://{host}:{port}{_PAGE} (Ctrl-C ends it)")
    for line in _who_can_reach(host, users[1] if users else None):
        _say(line)
    own = where.storage / "mlartifacts"
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--default-artifact-root", own.as_uri(), "--no-serve-artifacts", "--app-name", served_ui.APP]
    with TemporaryDirectory(prefix="cryobench-ui-") as scratch:
        variables = served_ui.environment([own, *(artifacts or [])], users, Path(scratch))
        try:
            raise typer.Exit(_run_masked(command, uri, variables))
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def _password(user: str) -> str:
    given = os.environ.get(_PASSWORD) or ""
    if not given and sys.stdin.isatty():
        given = typer.prompt(f"Password of {user}", hide_input=True, confirmation_prompt=True)
    if len(given) < _SHORTEST:
        found = f"one of {len(given)} characters" if given else "none"
        raise ConfigError(
            f"ui --auth needs a password of at least {_SHORTEST} characters, found {found}. Put it into "
            f"{_PASSWORD}, or start the command in a terminal, which asks for it."
        )
    return given


def _who_can_reach(host: str, user: str | None) -> list[str]:
    """In plain words who can reach what is served."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    who = "every user of this machine" if local else f"everyone who reaches {host} of this machine"
    if user is None:
        lines = [f"No password: {who} can read, change and delete what it shows. --auth asks for one."]
    else:
        lines = [f"Asks for a password: of {who}, only {user}, and whom {user} lets in, can read or change anything."]
        if not local:
            lines += ["Passwords and pages go over the network as they are: put a proxy with TLS in front."]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        lines += ["It runs as root, which it never needs: start it as another user."]
    return lines


def _tell_of_server(uri: str) -> None:
    address = masked(uri)
    page = re.sub(r"://[^/@]*@", "://", address).rstrip("/") + _PAGE
    _say(f"{address} is an MLflow server and has its own UI: {page} (nothing to start here)")


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


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


def _run_masked(command: list[str], uri: str, variables: dict[str, str]) -> int:
    """Run MLflow on ``uri``; the password is neither among its arguments, where ps shows it, nor in what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != _PASSWORD}
    environment |= variables | {"MLFLOW_BACKEND_STORE_URI": uri}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(masked(line, uri))
            sys.stderr.flush()
    return process.returncode
