"""Whole sweeps: the command line on a storage, and what must come out the same however it was disturbed."""

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
from typer.testing import CliRunner

from cryobench.orchestrator.cli import app
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
            self.arguments(*self.overrides, *more), capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout

    def run_here(self, *more: str, name: str = "sweep", expect: int = 0) -> str:
        """The same in this process, on the Ray that its tests share."""
        places = ["--storage", str(self.storage), "--data-dir", str(self.data_dir)]
        overrides = [] if name == "resume" else [*self.overrides]
        arguments = [name, *places, "--cache-dir", str(self.storage.parent / "cache"), *overrides, *more]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
        return done.output

    def start(self, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.arguments(*self.overrides, *more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 900
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


def kill_driver(command: Command, undisturbed: Path, at_epochs: int) -> None:
    process = command.start()
    command.wait_for(lambda: command.epochs() >= at_epochs, process)
    tree = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    complete = {f.trial_id: len(f.events()) for f in command.finished()}
    assert len(complete) < read_leaderboard(undisturbed).num_rows
    command.run_here()
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
    told, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, told
    happened = "a machine that was taken away" if how == signal.SIGTERM else "the worker process died (killed, or a"
    assert happened in told
    assert "going on from the last checkpoint" in told
    assert "Traceback" not in told
    assert max(events(command.storage, "attempt").values()) == 2  # the killed trial was tried again
    check_same_and_once(command, undisturbed)
