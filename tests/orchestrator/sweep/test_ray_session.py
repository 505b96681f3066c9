"""A Ray of a sweep's own: who can reach it, and who is let in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

#: Starts Ray as a sweep does, tells where everything of it listens, and lets a stranger try.
SCRIPT = """
import json, os, subprocess, sys
from pathlib import Path
import psutil
from cryobench.orchestrator.sweep.ray_session import ray_session
told = sys.stdout
with ray_session(None, Path(sys.argv[1])):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    me = psutil.Process()
    mine = {me.pid, *(child.pid for child in me.children(recursive=True))}
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in mine}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    stranger = subprocess.Popen(
        [sys.executable, "-c", sys.argv[2], ray.get_runtime_context().gcs_address],
        env=clean | {"HOME": sys.argv[3], "RAY_AUTH_MODE": sys.argv[4], "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = stranger.communicate(timeout=30)
    except subprocess.TimeoutExpired:  # Ray tries on and on
        stranger.kill()
        said, _ = stranger.communicate()
    print(json.dumps({"listening": sorted(listening), "stranger": said}), file=told)
"""
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: "code of a stranger ran").remote()))
"""


HOLD = """
from cryobench.orchestrator.sweep.ray_session import own_ray_folder
with own_ray_folder() as folder:
    print(folder, flush=True)
    input()
"""


def test_what_a_killed_driver_left_is_removed_at_the_next_start_and_that_of_a_running_one_is_not() -> None:
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as place:  # whose path is short enough for Ray's sockets
        clean = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"} | {"TMPDIR": place}

        def start() -> tuple[subprocess.Popen[str], Path]:
            process = subprocess.Popen(
                [sys.executable, "-c", HOLD], env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip())
            (folder / "session_1" / "logs").mkdir(parents=True)
            return process, folder

        (killed, left), (running, used) = start(), start()
        assert left.parent.stat().st_mode & 0o077 == 0
        killed.kill()
        killed.communicate()
        assert left.exists()
        following, own = start()
        assert not left.exists()
        assert used.exists()
        assert sorted(path.name for path in left.parent.iterdir()) == sorted(
            name for folder in (used, own) for name in (folder.name, f"{folder.name}.lock")
        )
        for process in (running, following):
            process.communicate("\n")


WATCH = """
import subprocess, sys, time
from pathlib import Path
from cryobench.orchestrator.sweep.ray_watch import ends_with_ray
server = subprocess.Popen([sys.argv[1], "60"])
time.sleep(0.5)  # until it has its name
with ends_with_ray(Path("ray.log"), 2):
    print(server.pid, flush=True)
    sys.stdin.readline()
server.kill()
server.wait()
time.sleep(1.5)
"""


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
@pytest.mark.parametrize("killed", [True, False])
def test_a_server_of_rays_that_ends_ends_the_driver_with_one_line(tmp_path: Path, name: str, killed: bool) -> None:
    shutil.copy(shutil.which("sleep") or "sleep", tmp_path / name)
    process = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(tmp_path / name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    server = int(process.stdout.readline())
    if killed:
        os.kill(server, signal.SIGKILL)
        assert process.wait(30) == 1
        _, said = process.communicate()
        assert said.startswith(f"Error: Ray's {name} on this machine has ended")
        assert said.endswith("ray.log\n")
        assert said.count("\n") == 1
    else:  # nothing is said of one that ends when it is no longer needed
        _, said = process.communicate("\n", timeout=30)
        assert (process.returncode, said) == (0, "")


def test_a_limit_to_the_size_of_files_is_said_before_ray_fails_by_it(tmp_path: Path) -> None:
    start = f"from pathlib import Path; s.ray_session(None, Path({str(tmp_path / 'ray.log')!r})).__enter__()"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**7, 10**7))"
    script = f"import cryobench.orchestrator.sweep.ray_session as s; {limit}; {start}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "ConfigError: Files are limited to 10 MB here (ulimit -f), Ray needs 200." in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_only_this_machine_reaches_it_and_only_with_its_token(tmp_path: Path, mode: str) -> None:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0" * 64)  # another one
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "ray.log"), STRANGER, str(home), mode]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, env=clean | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {ip.removeprefix("::ffff:") for ip in found["listening"]} == {"127.0.0.1"}
    assert "code of a stranger ran" not in found["stranger"]
    assert "Unauthenticated" in found["stranger"] or "AuthenticationError" in found["stranger"]
