"""A sweep that is disturbed, and what came of it beside one that was not."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path

import psutil

from cryobench.orchestrator.results.leaderboard import VOLATILE, read_leaderboard
from cryobench.workers.record.events import AttemptStarted, EpochFinished, Finished
from cryobench.workers.record.folder import TrialFolder, all_trials

#: Eight trials of some seconds each.
OVERRIDES = (
    "sweep=demo",
    "encoders=[unet_small,s12_moco_small]",
    "datasets=[glid]",
    "regimes=[frozen,finetune]",
    "seeds=[1,2]",
    "lr_search=null",
    "protocol.epochs=12",
    "protocol.crops_per_tile=4",
    "protocol.bootstrap_samples=100",
    "resources.checkpoint_every_s=0.5",
    "resources.lease_s=6",
    "resources.crash_retries=20",
)
#: All moments are drawn from this, so that a run can be repeated.
MOMENTS = random.Random(20261125)


@dataclass
class Sweep:
    """The command on a storage, which may be at a ``url``: then ``storage`` is a working copy of it."""

    storage: Path
    data_dir: Path
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    url: str | None = None
    cache: Path | None = None
    prefix: tuple[str, ...] = ()
    name: str = "demo"

    def start(self, *more: str) -> subprocess.Popen[str]:
        places = ["--storage", self.url or str(self.storage), "--data-dir", str(self.data_dir)]
        places += ["--cache-dir", str(self.cache or self.storage.parent / "cache")]
        entry = "from cryobench.orchestrator.cli import main; main()"
        command = [*self.prefix, sys.executable, "-c", entry, "sweep", *places, *OVERRIDES, f"name={self.name}"]
        return subprocess.Popen(
            [*command, *self.options, *more],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finished(self) -> int:
        return sum((folder.path / "result.json").exists() for folder in all_trials(self.storage))

    def epochs(self) -> int:
        return sum(len(folder.epochs()) for folder in all_trials(self.storage))

    def running(self) -> list[int]:
        """The processes that run an unfinished trial with an epoch."""
        found = []
        for folder in all_trials(self.storage):
            pids = [event.pid for event in folder.events() if isinstance(event, AttemptStarted)]
            if pids and not (folder.path / "result.json").exists() and psutil.pid_exists(pids[-1]):
                found.append(pids[-1])
        return found


def wait_for(what: Callable[[], object], process: subprocess.Popen[str] | None = None, patience_s: float = 300) -> None:
    deadline = time.monotonic() + patience_s
    while not what():
        if process is not None and process.poll() is not None:
            raise AssertionError(process.stdout.read() if process.stdout else "")
        assert time.monotonic() < deadline
        time.sleep(0.1)


def some_epochs(sweep: Sweep, process: subprocess.Popen[str]) -> None:
    """Wait for a random number of further epochs."""
    until = sweep.epochs() + MOMENTS.randint(8, 25)
    wait_for(lambda: sweep.epochs() >= until, process)


def to_the_end(sweep: Sweep, process: subprocess.Popen[str]) -> str:
    """What the driver printed, which must end well."""
    told, _ = process.communicate(timeout=900)
    assert process.returncode == 0, told
    assert "Traceback" not in told, told
    return told


@dataclass(frozen=True)
class FaultRow:
    """What a fault did, ``times`` over: trials lost, run twice, with other numbers; attempts beyond each trial's first,
    and epochs that were trained again.
    """

    fault: str
    times: int
    lost: int
    doubled: int
    changed: int
    restarts: int
    extra_epochs: int
    epochs: int


@dataclass
class FaultTable:
    """The rows of this run."""

    rows: list[FaultRow] = field(default_factory=list)

    def add(self, fault: str, times: int, sweep: Sweep, undisturbed: Sweep) -> None:
        """Compare and keep; raise unless every trial is there once with the numbers of the undisturbed sweep."""
        row = compare(fault, times, sweep, undisturbed)
        self.rows.append(row)
        print(f"\n{row}")
        assert (row.lost, row.doubled, row.changed) == (0, 0, 0), row

    def write(self, path: Path) -> None:
        names = ("fault", "times", "lost", "doubled", "changed", "restarts", "epochs trained again")
        lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        for row in self.rows:
            *values, extra, epochs = (str(value) for value in astuple(row))
            lines.append(f"| {' | '.join(values)} | {extra} of {epochs} |")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        print("\n" + path.read_text())


def compare(fault: str, times: int, sweep: Sweep, undisturbed: Sweep) -> FaultRow:
    """The row of a fault, from the folders and the leaderboard."""
    expected = {str(row["trial_id"]): row for row in steady_rows(undisturbed.storage)}
    found = steady_rows(sweep.storage)
    ids = Counter(str(row["trial_id"]) for row in found)
    finished: Counter[str] = Counter()
    restarts, again = 0, 0
    for folder in all_trials(sweep.storage):
        events = folder.events()
        finished[folder.trial_id] = sum(isinstance(event, Finished) for event in events)
        restarts += sum(isinstance(event, AttemptStarted) for event in events) - 1
        again += sum(isinstance(event, EpochFinished) for event in events) - len(folder.epochs())
    return FaultRow(
        fault=fault,
        times=times,
        lost=len(expected.keys() - ids.keys()) + sum(finished[trial] == 0 for trial in expected),
        doubled=sum(count > 1 for count in ids.values()) + sum(count > 1 for count in finished.values()),
        changed=sum(row != expected.get(str(row["trial_id"])) for row in found),
        restarts=restarts,
        extra_epochs=again,
        epochs=sum(len(TrialFolder(undisturbed.storage, trial).epochs()) for trial in expected),
    )


def steady_rows(storage: Path) -> list[dict[str, object]]:
    """The leaderboard without what differs from machine to machine and from day to day."""
    rows: list[dict[str, object]] = read_leaderboard(storage).drop_columns([*VOLATILE, "sweep"]).to_pylist()
    return rows
