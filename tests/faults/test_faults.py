"""Whole sweeps under faults: nothing is lost, nothing is run twice, no number changes. Run by make test-faults.

Each fault strikes at moments drawn at random from a fixed seed, in a sweep of eight trials of some seconds.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from disturbing import MOMENTS, FaultTable, Sweep, some_epochs, to_the_end, wait_for
from ray_cluster import RayCluster, free_port, with_patience
from relay import Relay

from cryobench.workers.record.folder import all_trials

pytestmark = pytest.mark.faults


@pytest.fixture
def sweep(tmp_path: Path, data_dir: Path) -> Sweep:
    return Sweep(tmp_path / "storage", data_dir, ("--tracking-uri", "none"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    """A head and two nodes."""
    made = RayCluster(tmp_path / "home")
    try:
        made.start_head()
        made.add_node()
        made.add_node()
        yield made
    finally:
        made.close()


def on(cluster: RayCluster, sweep: Sweep) -> Sweep:
    sweep.options += ("--address", cluster.address)
    sweep.environment = cluster.environment
    return sweep


def kill_at_random(sweep: Sweep, process: subprocess.Popen[str], times: int) -> None:
    """Kill a process that runs a trial, so many times."""
    for _ in range(times):
        wait_for(sweep.running, process)
        time.sleep(MOMENTS.uniform(0.2, 2.0))
        running = sweep.running()
        if running:
            with_patience(psutil.Process(MOMENTS.choice(running)))


def test_a_worker_is_killed_ten_times(sweep: Sweep, undisturbed: Sweep, table: FaultTable) -> None:
    process = sweep.start()
    kill_at_random(sweep, process, 10)
    to_the_end(sweep, process)
    table.add("a worker is killed", 10, sweep, undisturbed)


def test_a_worker_is_paused_for_longer_than_its_lease(sweep: Sweep, undisturbed: Sweep, table: FaultTable) -> None:
    process = sweep.start()
    for _ in range(2):
        wait_for(sweep.running, process)
        paused = psutil.Process(MOMENTS.choice(sweep.running()))
        paused.suspend()
        time.sleep(12)  # twice the lease
        paused.resume()
    to_the_end(sweep, process)
    table.add("a worker is paused for twice its lease", 2, sweep, undisturbed)


def test_a_node_is_lost(sweep: Sweep, cluster: RayCluster, undisturbed: Sweep, table: FaultTable) -> None:
    process = on(cluster, sweep).start()
    some_epochs(sweep, process)
    with_patience(cluster.processes("raylet")[-1])
    to_the_end(sweep, process)
    table.add("a node is lost", 1, sweep, undisturbed)


def test_the_driver_is_killed_five_times(sweep: Sweep, undisturbed: Sweep, table: FaultTable) -> None:
    """In its first second, in its last, and between."""
    process = sweep.start()
    time.sleep(1.0)
    kill_driver(process)
    for _ in range(3):
        process = sweep.start()
        some_epochs(sweep, process)
        kill_driver(process)
    process = sweep.start()
    wait_for(lambda: sweep.finished() == 8, process)
    time.sleep(MOMENTS.uniform(0.0, 0.5))
    kill_driver(process)
    to_the_end(sweep, sweep.start())
    table.add("the driver is killed, in its first and last second too", 5, sweep, undisturbed)


def kill_driver(process: subprocess.Popen[str]) -> None:
    """SIGKILL, which takes no worker along; those find out by themselves."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_the_head_is_lost(sweep: Sweep, cluster: RayCluster, undisturbed: Sweep, table: FaultTable) -> None:
    """The whole cluster with the driver on it: it is started again, and so is the command."""
    process = on(cluster, sweep).start()
    some_epochs(sweep, process)
    cluster.kill()
    kill_driver(process)
    cluster.start_head()
    cluster.add_node()
    to_the_end(sweep, sweep.start())
    table.add("the head is lost, with the driver", 1, sweep, undisturbed)


def test_the_mlflow_server_is_gone_for_the_middle_third(
    sweep: Sweep, undisturbed: Sweep, table: FaultTable, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    port = free_port()
    sweep.options = ("--tracking-uri", f"http://127.0.0.1:{port}")
    server = mlflow_server(tmp_path, port)
    process = sweep.start()
    total = undisturbed.epochs()
    wait_for(lambda: sweep.epochs() >= total // 3, process)
    end_group(server)
    wait_for(lambda: sweep.epochs() >= 2 * total // 3, process)
    server = mlflow_server(tmp_path, port)
    try:
        told = to_the_end(sweep, process)
        assert "Warning: MLflow at" in told
        if "cryobench sync" in told.splitlines()[-1]:
            places = ["--storage", str(sweep.storage), "--tracking-uri", f"http://127.0.0.1:{port}"]
            entry = "from cryobench.orchestrator.cli import main; main()"
            subprocess.run([sys.executable, "-c", entry, "sync", *places], check=True, timeout=300)
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        experiment = client.get_experiment_by_name(sweep.name)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "tags.status = 'completed'")
        assert len({run.data.tags["trial_id"] for run in runs}) == len(runs) == 8
        for run in runs:
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
            assert steps == list(range(1, 13))
    finally:
        end_group(server)
    table.add("the MLflow server is gone for the middle third", 1, sweep, undisturbed)


def mlflow_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    import urllib.request

    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "a"),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def answers() -> bool:
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200)
        except OSError:
            return False

    wait_for(answers)
    return server


def end_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.getuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("a file system of one's own needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_the_storage_is_read_only_and_full_for_a_while(
    sweep: Sweep, undisturbed: Sweep, table: FaultTable, small_disk: Path
) -> None:
    sweep.storage = small_disk / "storage"
    process = sweep.start()
    some_epochs(sweep, process)
    # A file system with open files cannot be made read-only; what is mounted over it can.
    subprocess.run(["mount", "--bind", "-o", "ro", str(small_disk), str(small_disk)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(small_disk)], check=True)
    time.sleep(10)
    subprocess.run(["umount", "-l", str(small_disk)], check=True)
    some_epochs(sweep, process)
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        try:
            while file.write(bytes(65536)):
                file.flush()
        except OSError:
            pass
    time.sleep(10)
    filler.unlink()
    to_the_end(sweep, process)
    table.add("the storage is read-only, then full, for 10 s each", 2, sweep, undisturbed)


#: Put first into every Python process: the clock that programs ask, off by what a file says.
CLOCK = """
import os, time
real, real_ns = time.time, time.time_ns
def offset():
    with open(os.environ["CLOCK_OFFSET"]) as file:
        return int(file.read() or 0)
time.time = lambda: real() + offset()
time.time_ns = lambda: real_ns() + offset() * 10**9
"""


def test_the_clock_is_set_back(sweep: Sweep, undisturbed: Sweep, table: FaultTable, tmp_path: Path) -> None:
    """For the driver and its workers, by an hour; times of files and Ray's own processes keep the machine's."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text(CLOCK)
    offset = tmp_path / "offset"
    offset.write_text("0")
    sweep.environment |= {"PYTHONPATH": str(tmp_path / "first"), "CLOCK_OFFSET": str(offset)}
    process = sweep.start()
    some_epochs(sweep, process)
    offset.write_text("-3600")
    to_the_end(sweep, process)
    times = [event.time for folder in all_trials(sweep.storage) for event in folder.events()]
    assert max(times) - min(times) > 3000  # the clock of the workers, too
    table.add("the clock is set back by an hour", 1, sweep, undisturbed)


def test_two_drivers_of_one_sweep_and_a_third_of_another(
    sweep: Sweep, undisturbed: Sweep, table: FaultTable, data_dir: Path
) -> None:
    """The first is killed in the middle; the second, which looked on, takes over; another sweep shares all trials."""
    first = sweep.start()
    wait_for(sweep.running, first)
    second = sweep.start()
    other = Sweep(sweep.storage, data_dir, sweep.options, name="another").start()
    some_epochs(sweep, first)
    kill_driver(first)
    told = to_the_end(sweep, second)
    assert "is driven by" in told
    assert "the other driver is gone; going on here" in told
    to_the_end(sweep, other)
    table.add("two drivers of one sweep, one of another with the same trials", 1, sweep, undisturbed)


NODES = ("cryo-a", "cryo-b", "cryo-c")


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[RayCluster]:
    """Three nodes, each on a network of its own, joined by a bridge in the first one's."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")

    def ip(text: str, check: bool = True) -> int:
        return subprocess.run(["ip", *text.split()], check=check, capture_output=True).returncode

    if ip(f"netns add {NODES[0]}", check=False):
        pytest.skip("this machine lets nobody make network namespaces (ip netns add)")
    made: RayCluster | None = None
    try:
        ip(f"-n {NODES[0]} link set lo up")
        ip(f"-n {NODES[0]} link add bridge type bridge")
        ip(f"-n {NODES[0]} addr add 10.99.0.1/24 dev bridge")
        ip(f"-n {NODES[0]} link set bridge up")
        for number, name in enumerate(NODES[1:], start=2):
            ip(f"netns add {name}")
            ip(f"-n {name} link set lo up")
            ip(f"-n {NODES[0]} link add to-{name} type veth peer name eth0 netns {name}")
            ip(f"-n {NODES[0]} link set to-{name} master bridge")
            ip(f"-n {NODES[0]} link set to-{name} up")
            ip(f"-n {name} addr add 10.99.0.{number}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
        made = RayCluster(tmp_path / "home", NODES, "10.99.0.1")
        made.start_head()
        made.add_node("10.99.0.2")
        made.add_node("10.99.0.3")
        yield made
    finally:
        if made is not None:
            made.close()
        for name in NODES:
            ip(f"netns del {name}", check=False)


@pytest.mark.parametrize("seconds", [10, 60])
def test_the_network_between_driver_and_a_node_is_cut(
    sweep: Sweep, apart: RayCluster, undisturbed: Sweep, table: FaultTable, seconds: int
) -> None:
    """Ten seconds are less than what makes Ray give a node up, sixty are more."""
    on(apart, sweep)
    sweep.prefix = tuple(apart.in_namespace(0, []))
    process = sweep.start()
    some_epochs(sweep, process)
    subprocess.run(["ip", "-n", NODES[0], "link", "set", f"to-{NODES[2]}", "down"], check=True)
    time.sleep(seconds)
    subprocess.run(["ip", "-n", NODES[0], "link", "set", f"to-{NODES[2]}", "up"], check=True)
    to_the_end(sweep, process)
    table.add(f"the network to a node is cut for {seconds} s", 1, sweep, undisturbed)


def test_an_object_store_answers_503_for_a_while(
    sweep: Sweep, s3: str, undisturbed: Sweep, table: FaultTable, tmp_path: Path
) -> None:
    from cryobench.workers.record.node_folders import working_copy

    relay = Relay(parse_qs(urlsplit(s3).query)["endpoint_override"][0])
    base, _, _ = s3.partition("?")
    sweep.cache = tmp_path / "cache"
    sweep.url = f"{base}/{tmp_path.name}?scheme=http&region=us-east-1&endpoint_override={relay.address}"
    sweep.storage = working_copy(tmp_path / "cache", sweep.url, "worker")
    process = sweep.start()
    for _ in range(2):
        some_epochs(sweep, process)
        relay.away = True
        time.sleep(10)
        relay.away = False
    to_the_end(sweep, process)
    relay.close()
    sweep.storage = working_copy(tmp_path / "cache", sweep.url, "driver")
    table.add("an object store answers 503 for 10 s", 2, sweep, undisturbed)
