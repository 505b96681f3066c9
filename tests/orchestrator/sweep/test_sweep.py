"""Whole sweeps through the command line: a real Ray, a real SQLite MLflow, real kills."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from cryobench.orchestrator.results.leaderboard import VOLATILE, read_leaderboard
from cryobench.orchestrator.results.tracking import default_uri
from cryobench.workers.record.events import AttemptStarted
from cryobench.workers.record.folder import TrialFolder, all_trials

#: Four trials of a few seconds each: two encoders, two regimes.
SMALL = (
    "sweep=demo",
    "encoders=[unet_small,s12_moco_small]",
    "datasets=[glid]",
    "regimes=[frozen,finetune]",
    "lr_search=null",
    "protocol.epochs=6",
    "protocol.crops_per_tile=4",
    "protocol.bootstrap_samples=100",
)
FULL = ("sweep=demo",)


@dataclass
class Command:
    """The command line on one storage."""

    storage: Path
    data_dir: Path
    overrides: tuple[str, ...]

    def arguments(self, *more: str, name: tuple[str, ...] = ("sweep",)) -> list[str]:
        entry = "from cryobench.orchestrator.cli import main; main()"
        places = ["--storage", str(self.storage), "--data-dir", str(self.data_dir)]
        return [sys.executable, "-c", entry, *name, *places, "--cache-dir", str(self.storage.parent / "cache"), *more]

    def run(self, *more: str, expect: int = 0) -> str:
        done = subprocess.run(
            self.arguments(*self.overrides, *more), capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout

    def start(self, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.arguments(*self.overrides, *more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 240
        while not what():
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def finished(self) -> list[TrialFolder]:
        return [f for f in all_trials(self.storage) if (f.path / "result.json").exists()]

    def epochs(self) -> int:
        return sum(len(f.epochs()) for f in all_trials(self.storage))


def steady(storage: Path) -> pa.Table:
    return read_leaderboard(storage).drop_columns(list(VOLATILE))


def events(storage: Path, name: str) -> dict[str, int]:
    return {f.trial_id: sum(e.event == name for e in f.events()) for f in all_trials(storage)}


def check_same_and_once(command: Command, undisturbed: Path) -> None:
    assert steady(command.storage).equals(steady(undisturbed))
    assert set(events(command.storage, "finished").values()) == {1}
    ids = read_leaderboard(command.storage)["trial_id"].to_pylist()
    assert len(ids) == len(set(ids))
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(command.storage))
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    found: list[Any] = client.search_runs([experiment.experiment_id], "tags.status = 'completed'")
    assert sorted(run.data.tags["trial_id"] for run in found) == sorted(ids)
    assert {run.info.run_id for run in found} == set(read_leaderboard(command.storage)["mlflow_run_id"].to_pylist())
    for run in found:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "loss")]
        assert steps == list(range(1, len(steps) + 1))


def running_worker(storage: Path) -> int | None:
    """The process that runs an unfinished trial with at least one whole epoch."""
    for folder in all_trials(storage):
        if folder.epochs() and not (folder.path / "result.json").exists():
            return next(e.pid for e in reversed(folder.events()) if isinstance(e, AttemptStarted))
    return None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Command:
    command = Command(tmp_path_factory.mktemp("undisturbed") / "storage", data_dir, SMALL)
    told = command.run()
    assert "4 completed" in told
    return command


def test_a_sweep_completes_and_says_where_things_are(undisturbed: Command) -> None:
    table = read_leaderboard(undisturbed.storage)
    assert table.num_rows == 4
    assert set(table["status"].to_pylist()) == {"completed"}
    assert len(undisturbed.finished()) == 4
    assert (undisturbed.storage / "mlflow.db").exists()


def test_running_it_again_runs_nothing(undisturbed: Command) -> None:
    before = {f.trial_id: len(f.events()) for f in undisturbed.finished()}
    told = undisturbed.run()
    assert "4 trials, 4 complete, 0 to run" in told
    assert {f.trial_id: len(f.events()) for f in undisturbed.finished()} == before


def kill_driver(command: Command, undisturbed: Path, at_epochs: int) -> None:
    process = command.start()
    command.wait_for(lambda: command.epochs() >= at_epochs, process)
    tree = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    complete = {f.trial_id: len(f.events()) for f in command.finished()}
    assert len(complete) < read_leaderboard(undisturbed).num_rows
    command.run()
    for left in psutil.wait_procs(tree, timeout=0)[1]:  # Ray's agents take a minute to notice that they are alone
        left.kill()
    for folder in command.finished():
        if folder.trial_id in complete:
            assert len(folder.events()) == complete[folder.trial_id]  # what was finished was not touched
    check_same_and_once(command, undisturbed)


def kill_worker(command: Command, undisturbed: Path, at_epochs: int, how: signal.Signals = signal.SIGKILL) -> None:
    process = command.start()
    command.wait_for(lambda: command.epochs() >= at_epochs and running_worker(command.storage) is not None, process)
    os.kill(running_worker(command.storage) or 0, how)
    told, _ = process.communicate(timeout=500)
    assert process.returncode == 0, told
    assert "its worker died or had to leave (time 1), going on from the last checkpoint" in told
    assert "Traceback" not in told
    assert max(events(command.storage, "attempt").values()) == 2  # the killed trial was tried again
    check_same_and_once(command, undisturbed)


def test_killing_the_driver_and_running_again_ends_the_same(undisturbed: Command, tmp_path: Path) -> None:
    kill_driver(Command(tmp_path / "storage", undisturbed.data_dir, SMALL), undisturbed.storage, at_epochs=10)


def test_killing_a_worker_ends_the_same(undisturbed: Command, tmp_path: Path) -> None:
    kill_worker(Command(tmp_path / "storage", undisturbed.data_dir, SMALL), undisturbed.storage, at_epochs=4)


def test_a_worker_on_a_machine_that_goes_away_leaves_and_its_trial_continues(
    undisturbed: Command, tmp_path: Path
) -> None:
    command = Command(tmp_path / "storage", undisturbed.data_dir, SMALL)
    kill_worker(command, undisturbed.storage, at_epochs=4, how=signal.SIGTERM)
    assert sum(events(command.storage, "interrupted").values()) >= 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly_and_says_how_to_go_on(undisturbed: Command, tmp_path: Path, how: signal.Signals) -> None:
    command = Command(tmp_path / "storage", undisturbed.data_dir, SMALL)
    process = command.start()
    command.wait_for(lambda: command.epochs() >= 3, process)
    began = time.monotonic()
    os.kill(process.pid, how)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert time.monotonic() - began < 30
    if how == signal.SIGTERM:  # what ran was saved first, in the middle of its epoch
        assert sum(events(command.storage, "interrupted").values()) >= 1
    assert f"Go on with: cryobench resume demo --storage {command.storage}" in told
    assert "Traceback" not in told
    arguments = command.arguments("demo", name=("resume",))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check_same_and_once(command, undisturbed.storage)


def test_failed_trials_are_reported_and_wait_for_retry_failed(undisturbed: Command, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(undisturbed.data_dir / "glid.zarr", tmp_path / "data" / "glid.zarr")
    chunk = tmp_path / "data" / "glid.zarr" / "test" / "mask" / "c" / "0" / "0" / "0"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-4])
    command = Command(tmp_path / "storage", tmp_path / "data", (*SMALL, "encoders=[unet_small]", "regimes=[frozen]"))
    told = command.run(expect=1)
    assert "failed" in told
    assert "tile 0 of test/mask" in told
    assert "--retry-failed" in told
    chunk.write_bytes(good)
    told = command.run(expect=1)
    assert "0 to run" in told
    assert "Not retried (corrupt_data)" in told
    assert "1 completed" in command.run("--retry-failed")
    assert read_leaderboard(command.storage)["status"].to_pylist() == ["completed"]


def test_missing_data_refuses_before_anything_runs(undisturbed: Command, tmp_path: Path) -> None:
    command = Command(tmp_path / "storage", tmp_path / "nothing", ("sweep=demo", "datasets=[glid]"))
    told = command.run(expect=2)
    assert "No tile store" in told
    assert "Nothing was run" in told
    assert not command.storage.exists()


def test_a_tracking_server_that_is_down_stops_before_anything_runs(undisturbed: Command, tmp_path: Path) -> None:
    command = Command(tmp_path / "storage", undisturbed.data_dir, SMALL)
    arguments = command.arguments(*SMALL, "--tracking-uri", "http://127.0.0.1:9")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.count("Error: MLflow at http://127.0.0.1:9 cannot be used") == 1
    assert "Traceback" not in done.stderr
    assert all_trials(command.storage) == []


def test_a_cluster_that_is_not_there_is_explained(undisturbed: Command, tmp_path: Path) -> None:
    command = Command(tmp_path / "storage", undisturbed.data_dir, SMALL)
    arguments = command.arguments(*SMALL, "--address", "127.0.0.1:9", "--tracking-uri", "none")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Cannot reach Ray cluster at 127.0.0.1:9" in done.stderr


def test_more_than_the_machine_has_is_explained(undisturbed: Command, tmp_path: Path) -> None:
    command = Command(tmp_path / "storage", undisturbed.data_dir, (*SMALL, "resources.cpus_per_trial=1000"))
    done = subprocess.run(
        command.arguments(*command.overrides), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 2
    assert "A trial asks for 1000 CPU and 0 GPU and must fit on one node; the largest of 1," in done.stderr


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    for name in ("glid", "caffe"):
        entry = "from cryobench.orchestrator.cli import main; main()"
        command = [sys.executable, "-c", entry, "data", "synth", name, "--data-dir", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_demo_sweep_survives_kills_of_driver_and_worker(demo_data: Path, tmp_path: Path) -> None:
    whole = Command(tmp_path / "whole" / "storage", demo_data, FULL)
    assert "24 completed" in whole.run()
    kill_driver(Command(tmp_path / "driver" / "storage", demo_data, FULL), whole.storage, at_epochs=90)
    kill_worker(Command(tmp_path / "worker" / "storage", demo_data, FULL), whole.storage, at_epochs=60)


def test_a_plan_of_a_finished_sweep_shows_it(undisturbed: Command) -> None:
    arguments = undisturbed.arguments(*SMALL, "--json", name=("plan",))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["counts"]["state"] == {"completed": 4}


def test_a_corrupt_tile_ends_its_trials_alone(data_dir: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data_dir / "glid.zarr", tmp_path / "data" / "glid.zarr")
    shutil.copytree(data_dir / "caffe.zarr", tmp_path / "data" / "caffe.zarr")
    chunk = tmp_path / "data" / "caffe.zarr" / "train" / "sar" / "c" / "4" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    overrides = (*SMALL[:2], "datasets=[caffe,glid]", "regimes=[finetune]", "lr_search=null", "protocol.epochs=2")
    command = Command(tmp_path / "storage", tmp_path / "data", (*overrides, "protocol.bootstrap_samples=100"))
    told = command.run(expect=1)
    assert "tile 4 of train/sar (images/train/0004.png) cannot be decoded" in told
    rows = read_leaderboard(command.storage).to_pylist()
    assert {(r["dataset"], r["status"], r["failure_kind"]) for r in rows} == {
        ("caffe", "failed", "corrupt_data"),
        ("glid", "completed", None),
    }


def test_a_trial_alone_equals_the_same_beside_others(undisturbed: Command, tmp_path: Path) -> None:
    from cryobench.workers.place import Place
    from cryobench.workers.trial import run_trial

    folder = undisturbed.finished()[0]
    alone = run_trial(folder.spec(), Place(tmp_path / "s", undisturbed.data_dir, tmp_path / "cache", device="cpu"))
    result = folder.result()
    assert result is not None
    assert alone.reproducible() == result.reproducible()


def test_a_node_that_runs_out_of_memory_does_not_end_the_sweep(
    undisturbed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune itself gives up when Ray ends a worker to save its node; here it does so in the middle of the sweep."""
    from ray import tune
    from ray.tune.execution.tune_controller import TuneController
    from rich.console import Console

    from cryobench.conf.compose import load_sweep
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.sweep.driver import run_sweep
    from cryobench.orchestrator.sweep.plan import make_plan

    assert tune
    storage = tmp_path / "storage"
    where = places(str(storage), data_dir=str(undisturbed.data_dir), cache_dir=str(tmp_path / "cache"))
    real, struck = TuneController.step, []

    def step(self: TuneController) -> None:
        real(self)
        if not struck and sum(len(f.epochs()) for f in all_trials(storage)) >= 3:
            struck.append(True)
            raise RuntimeError("1 worker(s) were killed due to the node running low on memory.")

    monkeypatch.setattr(TuneController, "step", step)
    console = Console(record=True, width=200)
    plan = make_plan(load_sweep(SMALL), where)
    outcome = run_sweep(plan, where, console, uri=default_uri(storage))
    assert struck
    assert outcome.counts == {"completed": 4}
    assert "A node ran out of memory; going on from the last checkpoints, 1 at a time" in console.export_text()
    check_same_and_once(Command(storage, undisturbed.data_dir, SMALL), undisturbed.storage)
