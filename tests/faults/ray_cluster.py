"""A real cluster on this machine: ``ray start`` for every node, each of which can be killed, or cut off."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class RayCluster:
    """Nodes of one processor each, with token authentication.

    Args:
        home: an empty folder, the home of who started it.
        namespaces: names of network namespaces, one a node, the head's first; none for all on this host's network.
        host: the head's address in its namespace.
    """

    def __init__(self, home: Path, namespaces: tuple[str, ...] = (), host: str = "127.0.0.1") -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix="r"))  # sockets lie below it, whose paths may have 107 characters
        self._namespaces, self._port = namespaces, free_port()
        self.address = f"{host}:{self._port}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CRYOBENCH_"))}
        self.environment = clean | {
            "HOME": str(home),
            "RAY_TMPDIR": str(self.temporary),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
        }
        self._ray("get-auth-token", "--generate")
        self._nodes = 0

    def start_head(self) -> None:
        host = self.address.split(":")[0]
        self._start("--head", "--port", str(self._port), "--node-ip-address", host, "--include-dashboard=false")

    def add_node(self, ip: str | None = None) -> psutil.Process:
        """The node's raylet."""
        before = {process.pid for process in self.processes("raylet")}
        self._start("--address", self.address, *(("--node-ip-address", ip) if ip else ()))
        return next(process for process in self.processes("raylet") if process.pid not in before)

    def in_namespace(self, number: int, command: list[str]) -> list[str]:
        """``command`` as run on the network of a node."""
        return ["ip", "netns", "exec", self._namespaces[number], *command] if self._namespaces else command

    def processes(self, kind: str = "") -> list[psutil.Process]:
        """This cluster's processes whose program's name has ``kind`` in it, oldest first."""
        found = []
        for process in psutil.process_iter(["cmdline", "create_time"]):
            arguments = process.info["cmdline"] or [""]
            if any(f"{self.temporary}/" in argument for argument in arguments) and kind in arguments[0]:
                found.append(process)
        return sorted(found, key=lambda process: float(process.info["create_time"]))

    def kill(self) -> None:
        """End every process of it at once, as when all its machines lose their power."""
        workers = [child for raylet in self.processes("raylet") for child in raylet.children(recursive=True)]
        for process in [*self.processes(), *workers]:
            with_patience(process)
        self._nodes = 0

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _start(self, *options: str) -> None:
        self._ray("start", "--num-cpus", "1", "--object-store-memory", str(80 * 1024 * 1024), *options)
        self._nodes += 1

    def _ray(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        if arguments[0] == "start":
            command = self.in_namespace(self._nodes, command)
        mode = {"RAY_AUTH_MODE": "token"}
        done = subprocess.run(
            command, env=self.environment | mode, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def with_patience(process: psutil.Process) -> None:
    """Kill a process that may be gone already."""
    try:
        process.kill()
        process.wait(timeout=10)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        pass
