"""cryobench ui: what it starts, what it leaves to others, and what it never shows."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
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


PASSWORD = "a long password"


@contextmanager
def served(cwd: Path, *arguments: str, **variables: str) -> Iterator[tuple[str, int, Path]]:
    """The UI on a free port: its address, its process group and the file with what it prints; ended by Ctrl-C."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    said = cwd / "said.txt"
    with said.open("w") as out:
        process = subprocess.Popen(
            [*COMMAND, *arguments, "--port", str(port)],
            cwd=cwd,
            env=os.environ | variables,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            try:
                assert ask(f"{address}/health") == (200, b"OK")
                break
            except urllib.error.URLError:
                assert process.poll() is None, said.read_text()
                time.sleep(0.1)
        yield address, process.pid, said
    finally:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0


def ask(address: str, data: object = None, user: str | None = None) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    request = urllib.request.Request(address, json.dumps(data).encode() if data is not None else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def run_with_artifacts_at(address: str, location: str, user: str | None = None) -> str:
    """A run in an experiment of its own, made as anybody who reaches the server can."""
    api = f"{address}/api/2.0/mlflow"
    _, made = ask(f"{api}/experiments/create", {"name": location[-200:], "artifact_location": location}, user)
    _, run = ask(f"{api}/runs/create", {"experiment_id": json.loads(made)["experiment_id"]}, user)
    return str(json.loads(run)["run"]["info"]["run_id"])


@pytest.mark.slow
def test_only_artifacts_of_the_storage_are_served_and_the_output_says_who_can_reach_them(tmp_path: Path) -> None:
    storage, outside = tmp_path / "storage", tmp_path / "outside"
    inside = storage / "mlartifacts" / "mine"
    for folder in (inside, outside, storage / "trials" / "t"):
        folder.mkdir(parents=True)
        (folder / "secret.txt").write_text("the secret")
    (storage / "mlartifacts" / "way-out").symlink_to(outside)
    uri = f"sqlite:///{tmp_path}/mlflow.db?password=secret"
    with served(tmp_path, "--tracking-uri", uri, "--storage", str(storage)) as (address, group, said):
        assert "No password: every user of this machine can read, change and delete" in said.read_text()
        run = run_with_artifacts_at(address, inside.as_uri())
        artifacts = inside / run / "artifacts"
        artifacts.mkdir(parents=True)
        (artifacts / "samples.png").write_bytes(b"a picture")
        (artifacts / "link.txt").symlink_to(outside / "secret.txt")
        assert ask(f"{address}/get-artifact?run_id={run}&path=samples.png") == (200, b"a picture")
        for path in ("link.txt", "../../secret.txt"):
            status, content = ask(f"{address}/get-artifact?run_id={run}&path={path}")
            assert status >= 400
            assert b"the secret" not in content
        locations = [outside.as_uri(), str(outside), (storage / "trials" / "t").as_uri(), "file:///etc"]
        locations += [(storage / "mlartifacts" / "way-out").as_uri(), "s3://bucket/x"]
        for location in locations:
            run = run_with_artifacts_at(address, location)
            for path in ("secret.txt", "passwd"):
                status, content = ask(f"{address}/get-artifact?run_id={run}&path={path}")
                assert status >= 400, location
                assert b"the secret" not in content
            status, _ = ask(f"{address}/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=new.txt", {"a": 1})
            assert status >= 400, location
        assert {path.name for path in outside.iterdir()} == {"secret.txt"}
        assert {path.name for path in (storage / "trials" / "t").iterdir()} == {"secret.txt"}
        status, _ = ask(f"{address}/api/2.0/mlflow-artifacts/artifacts/secret.txt")
        assert status >= 400
        arguments = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _group(path) == group]
        assert len(arguments) > 1
        assert [line for line in arguments if b"password=secret" in line and b"--tracking-uri" not in line] == []


@pytest.mark.slow
def test_with_auth_only_who_knows_the_password_sees_anything(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    Tracker(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, "demo")
    arguments, variables = ("--auth", "--storage", str(tmp_path)), {"CRYOBENCH_UI_PASSWORD": PASSWORD}
    asked = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=demo"
    with served(tmp_path, *arguments, **variables) as (address, group, said):
        assert "Asks for a password" in said.read_text()
        for user in (None, "admin:", "admin:password1234", f"someone:{PASSWORD}"):
            assert ask(f"{address}{asked}", user=user)[0] == 401
            assert ask(f"{address}/", user=user)[0] == 401
        status, found = ask(f"{address}{asked}", user=f"admin:{PASSWORD}")
        assert status == 200
        assert json.loads(found)["experiment"]["name"] == "demo"
        run = run_with_artifacts_at(address, "file:///etc", user=f"admin:{PASSWORD}")
        status, content = ask(f"{address}/get-artifact?run_id={run}&path=passwd", user=f"admin:{PASSWORD}")
        assert status >= 400
        assert b"root:" not in content
        environments = [path.with_name("environ") for path in Path("/proc").glob("[0-9]*/cmdline")]
        served_by = [path.read_bytes() for path in environments if _group(path) == group and path.exists()]
        assert sum(PASSWORD.encode() in found for found in served_by) <= 1  # the command itself
    database = tmp_path / "mlflow-users.db"
    assert database.stat().st_mode & 0o077 == 0
    with served(tmp_path, *arguments, CRYOBENCH_UI_PASSWORD="another password") as (address, *_):
        assert ask(f"{address}{asked}", user=f"admin:{PASSWORD}")[0] == 401
        assert ask(f"{address}{asked}", user="admin:another password")[0] == 200


@pytest.mark.parametrize("password", ["", "short"])
def test_auth_without_a_fit_password_is_refused(tmp_path: Path, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOBENCH_UI_PASSWORD", password)
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = ui("--auth", "--storage", str(tmp_path), "--port", str(port), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ui --auth needs a password of at least 12 characters, found ")


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
