"""The README's cluster, started by its own lines, with authentication on; a node is killed; the numbers stay."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sweeping import Command, check_same_and_once

from cryobench.orchestrator.sweep.ray_session import ray_log
from cryobench.workers.record.events import AttemptStarted
from cryobench.workers.record.folder import all_trials

README = Path(__file__).resolve().parents[3] / "README.md"
PORT = 6379


def cluster_lines() -> list[str]:
    """The block of the README that starts a cluster, without its comments."""
    block = next(b for b in re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL) if "ray start --head" in b)
    return [line.split(" #")[0].strip() for line in block.splitlines()]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a shell on a machine on which nothing was ever run; what it starts ends with the test."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"port {PORT}, which the README's lines name, is in use on this machine")
    (tmp_path / "home").mkdir()
    temporary = Path(tempfile.mkdtemp(prefix="r"))  # sockets lie below it, whose paths may have 107 characters
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CRYOBENCH_"))}
    yield environment | {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(temporary),
        "CRYOBENCH_CACHE": str(tmp_path / "cache"),
    }
    for process in rays(temporary):
        process.kill()
    psutil.wait_procs(rays(temporary), timeout=10)
    shutil.rmtree(temporary, ignore_errors=True)


def rays(temporary: Path, kind: str = "") -> list[psutil.Process]:
    """The processes of the Ray that lives in ``temporary``, oldest first."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        line = " ".join(process.info["cmdline"] or [])
        if f"{temporary}/" in line and kind in (process.info["cmdline"] or [""])[0]:
            found.append(process)
    return sorted(found, key=lambda process: float(process.info["create_time"]))


@pytest.mark.slow
def test_the_five_lines_of_the_readme_survive_a_lost_node_and_give_the_same_numbers(
    data_dir: Path, tmp_path: Path, shell: dict[str, str]
) -> None:
    export, token, head, node, sweep = cluster_lines()
    shell |= {"CRYOBENCH_DATA": str(data_dir), "CRYOBENCH_STORAGE": str(tmp_path / "cluster")}
    for line in (token, head, node, node):
        done = subprocess.run(
            ["bash", "-ec", f"{export}; {line}"], env=shell, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    raylets = rays(Path(shell["RAY_TMPDIR"]), "raylet")
    assert len(raylets) == 3
    told = sweep_while_a_node_dies(sweep, shell, raylets[-1], tmp_path / "cluster")
    assert "12 completed" in told
    assert "going on from the last checkpoint" in told
    assert "is gone; 2 nodes left" in told
    for word in ("state-dump", "Traceback", "raylet", "WARNING"):
        assert word not in told, told
    said = ray_log(tmp_path / "cluster", "demo").parent.glob("ray-*.log")
    assert any("raylet" in path.read_text(errors="replace").lower() for path in said)
    hosts = {e.pid for f in all_trials(tmp_path / "cluster") for e in f.events() if isinstance(e, AttemptStarted)}
    assert len(hosts) >= 3  # workers of three nodes took part

    shell |= {"CRYOBENCH_STORAGE": str(tmp_path / "alone")}
    alone = sweep.split(" --address")[0]
    done = subprocess.run(["bash", "-ec", alone], env=shell, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check_same_and_once(Command(tmp_path / "cluster", data_dir, ()), tmp_path / "alone")


def sweep_while_a_node_dies(line: str, shell: dict[str, str], victim: psutil.Process, storage: Path) -> str:
    """The sweep in a shell that was told nothing of tokens; the raylet ``victim`` is killed once a trial runs there."""
    process = subprocess.Popen(
        ["bash", "-ec", line], env=shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 300
    while not busy(victim, storage):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    told, _ = process.communicate(timeout=900)
    assert process.returncode == 0, told
    return told


def busy(raylet: psutil.Process, storage: Path) -> bool:
    """Whether a worker of this node runs a trial that has an epoch and no result."""
    workers = {child.pid for child in raylet.children(recursive=True)}
    for folder in all_trials(storage):
        pids = [event.pid for event in folder.events() if isinstance(event, AttemptStarted)]
        if pids and pids[-1] in workers and folder.epochs() and not (folder.path / "result.json").exists():
            return True
    return False
