"""cryobench ui: what it starts, what it leaves to others, and what it never shows."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cryobench.conf.errors import TrackingError
from cryobench.orchestrator.results.tracking import Tracker

COMMAND = [sys.executable, "-c", "from cryobench.orchestrator.cli import main; main()", "ui"]


def ui(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


@pytest.mark.parametrize("password", ["secret", "s%40cr%2Fet", "se@cr/et"])
def test_a_server_has_its_own_ui(tmp_path: Path, password: str) -> None:
    done = ui("--tracking-uri", f"http://user:{password}@host:5000/", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "http://user:***@host:5000/ is an MLflow server and has its own UI: http://host:5000/#/experi" in done.stdout
    assert password not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["none", "databricks://user:secret@host", "ftp://user:secret@host"])
def test_what_no_ui_can_open_is_explained(tmp_path: Path, uri: str) -> None:
    done = ui("--tracking-uri", uri, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --tracking-uri ")
    assert "Expected a store that the UI can open" in done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_a_busy_port_is_said_at_once_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        done = ui("--storage", str(tmp_path), "--port", str(busy.getsockname()[1]), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: Cannot listen on 127.0.0.1:")
    assert "(Address already in use). Give another --port" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_database_that_does_not_answer_never_shows_its_password(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    uri = "postgresql+nodriver://user:s%40cret@127.0.0.1:9/db?password=othersecret"
    done = ui("--tracking-uri", uri, "--port", port, cwd=tmp_path)
    assert done.returncode != 0
    assert "MLflow UI of postgresql+nodriver://user:***@127.0.0.1:9/db?password=***:" in done.stdout
    for secret in ("s%40cret", "s@cret", "othersecret"):
        assert secret not in done.stdout + done.stderr


@pytest.mark.slow
def test_the_ui_answers_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"sqlite:///{tmp_path}/mlflow.db?password=secret"
    process = subprocess.Popen(
        [*COMMAND, "--tracking-uri", uri, "--port", str(port)], cwd=tmp_path, start_new_session=True
    )
    try:
        for _ in range(600):
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        assert page == b"OK"
        arguments = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _group(path) == process.pid]
        assert len(arguments) > 1
        assert [line for line in arguments if b"secret" in line and b"--tracking-uri" not in line] == []
    finally:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0


def _group(path: Path) -> int | None:
    try:
        return os.getpgid(int(path.parent.name))
    except ProcessLookupError:
        return None


@pytest.mark.parametrize(
    "uri", ["http://user:s%40cret@127.0.0.1:9", "postgresql+nodriver://user:s%40cret@127.0.0.1/db"]
)
def test_a_tracker_that_cannot_be_reached_shows_no_password(tmp_path: Path, uri: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(TrackingError, match=r"user:\*\*\*@127.0.0.1") as error:
            Tracker(uri, tmp_path, "demo")
    assert "cret" not in str(error.value)
