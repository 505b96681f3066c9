"""Servers that a benchmark or a test starts on this machine and ends again: MLflow's, and PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def mlflow_server(folder: Path, backend: str | None = None, port: int | None = None) -> Iterator[str]:
    """An MLflow server of one worker on this machine; its address. ``backend``: by default SQLite in ``folder``."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", backend or f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def postgres_programs() -> Path | None:
    """The folder of ``postgres`` and ``initdb``; distributions keep them out of the path."""
    found = shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


def why_no_postgres() -> str | None:
    """Why PostgreSQL cannot be used here; None if it can."""
    if postgres_programs() is None:
        return "no postgres here: install the distribution's postgresql"
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "MLflow needs psycopg2 for PostgreSQL: pip install psycopg2-binary"
    return None


@contextmanager
def local_postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own below ``folder``, under an unprivileged user where this one is root; its address."""
    programs = postgres_programs()
    assert programs is not None
    user: dict[str, Any] = {}
    place = Path(tempfile.mkdtemp(prefix="cryobench-postgres-", dir=folder))
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        os.chown(place, entry.pw_uid, entry.pw_gid)
        for above in (folder, *folder.parents):  # pytest's and tempfile's folders are their maker's alone
            if above.stat().st_uid == 0 and not above.stat().st_mode & 0o001:
                above.chmod(above.stat().st_mode | 0o011)
    quiet: dict[str, Any] = {"cwd": place, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **user}
    subprocess.run([programs / "initdb", "-D", place / "data", "-A", "trust", "-U", "cryobench"], check=True, **quiet)
    port = free_port()
    command = [programs / "postgres", "-D", place / "data", "-p", str(port), "-k", "", "-h", "127.0.0.1"]
    process = subprocess.Popen(command, **quiet)
    try:
        wait_for_port(port, process)
        yield f"postgresql+psycopg2://cryobench@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # at once; a SIGTERM waits until all that are connected have left
        process.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    """Return once ``process`` listens."""
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{process.args} does not listen on port {port}.")
