"""A sweep's state from its folders alone."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.cli import app
from cryobench.orchestrator.sweep.status import SweepStatus, sweep_status
from cryobench.orchestrator.sweep.survey import Survey, TrialView
from cryobench.workers.record.files import append_line, write_json
from cryobench.workers.record.folder import TrialFolder

NOW = 1_800_000_000.0


class Storage:
    """Trial folders as workers leave them, at chosen times."""

    def __init__(self, path: Path, spec: TrialSpec) -> None:
        self.path, self.spec, self.trials = path, spec, list[str]()

    def trial(self, *events: dict[str, Any], lease: dict[str, Any] | None = None, result: Any = None) -> str:
        trial = f"{len(self.trials):016x}"
        self.trials.append(trial)
        folder = TrialFolder(self.path, trial)
        if events:
            folder.write_spec(self.spec)
        for event in events:
            append_line(folder.path / "events.jsonl", event)
        if lease:
            write_json(folder.path / "lease.json", {"format": 1, **lease})
        if result:
            write_json(folder.path / "result.json", {"format": 2, "epochs": self.spec.protocol.epochs, **result})
        return trial

    def begun(self, ago: float, epochs: int = 1, host: str = "far", pid: int = 1) -> list[dict[str, Any]]:
        """An attempt whose last epoch ended ``ago`` seconds ago; epochs take ten."""
        start = NOW - ago - 10 * epochs
        attempt = {"event": "attempt", "time": start, "host": host, "pid": pid, "device": "cuda", "code": "1"}
        return [attempt, *(self.epoch(start + 10 * number, number) for number in range(1, epochs + 1))]

    def epoch(self, at: float, number: int) -> dict[str, Any]:
        return {"event": "epoch", "time": at, "epoch": number, "loss": 1.0, "lr": 1e-3, "seconds": 9.0}

    def ended(self, ago: float, status: str = "completed", host: str = "far", seconds: float = 30.0) -> str:
        events = [*self.begun(ago, 3, host), {"event": "finished", "time": NOW - ago, "status": status}]
        return self.trial(
            *events,
            result={
                "status": status,
                "cost": {"total_seconds": seconds},
                "provenance": {"host": host, "device": "H100"},
            },
        )

    def look(self) -> dict[str, TrialView]:
        return {view.trial_id: view for view in Survey(self.path).look(tuple(self.trials), NOW)}

    def status(self) -> SweepStatus:
        return sweep_status("s", self.look().values(), NOW)


@pytest.fixture
def storage(tmp_path: Path, one_trial: Any) -> Storage:
    return Storage(tmp_path / "storage", one_trial("protocol.epochs=6"))


def test_each_state_is_told_from_the_folder(storage: Storage) -> None:
    past = {"host": "far", "pid": 1, "expires": NOW - 90}
    stopped = {"event": "stopped_early", "time": NOW, "epoch": 2, "message": "asha: behind"}
    expected = {
        storage.trial(): "waiting",
        storage.trial(*storage.begun(5)): "running",
        storage.trial(*storage.begun(5), {"event": "interrupted", "time": NOW}): "waiting",
        storage.trial(*storage.begun(5), {"event": "failed", "time": NOW, "kind": "crashed", "message": "m"}): "failed",
        storage.trial(*storage.begun(5), stopped): "pruned",
        storage.trial(
            *storage.begun(5), stopped, {"event": "attempt", "time": NOW, "host": "far", "pid": 1}
        ): "running",
        storage.trial(*storage.begun(5), {"event": "pruned", "time": NOW, "file": "f", "bytes": 1}): "running",
        storage.ended(5): "completed",
        storage.ended(5, "diverged"): "diverged",
        storage.trial(*storage.begun(5), lease={"host": "far", "pid": 1, "expires": NOW + 30}): "running",
        storage.trial(*storage.begun(5), lease=past): "expired",
        storage.trial(*storage.begun(7200)): "expired",
        storage.trial(*storage.begun(7200), lease={"host": "far", "pid": 1, "expires": NOW + 30}): "running",
        storage.trial(*storage.begun(5), lease={**past, "released": True}): "running",
    }
    assert {trial: view.state for trial, view in storage.look().items()} == expected
    counts = storage.status().counts
    assert counts == {"waiting": 2, "running": 6, "failed": 1, "pruned": 1, "completed": 1, "diverged": 1, "expired": 2}
    (pruned,) = (view for view in storage.look().values() if view.state == "pruned")
    assert (pruned.message, pruned.ended) == ("asha: behind", NOW)


def test_what_was_stopped_early_is_not_waited_for(storage: Storage) -> None:
    for _ in range(2):
        storage.trial(
            *storage.begun(600, epochs=2), {"event": "stopped_early", "time": NOW, "epoch": 2, "message": "m"}
        )
    found = storage.status()
    assert (found.finished, found.left, found.expected_end) == (2, 0, None)
    running = storage.trial(*storage.begun(600, epochs=3))
    found = storage.status()
    assert found.left == 1
    assert found.expected_end is not None
    more = sweep_status("s", storage.look().values(), NOW, to_suggest=4)
    assert more.expected_end is not None
    assert more.expected_end > found.expected_end  # what a search will add takes its time too
    assert storage.look()[running].state == "running"


def test_a_process_of_this_machine_that_is_gone_does_not_run(storage: Storage) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = platform.node()
    dead = storage.trial(*storage.begun(30, host=here, pid=gone.pid))
    alive = storage.trial(*storage.begun(30, host=here, pid=os.getpid()))
    found = storage.look()
    assert (found[dead].state, found[dead].message) == ("expired", "its process is gone")
    assert found[alive].state == "running"


def test_time_left_is_what_its_epochs_take(storage: Storage) -> None:
    trial = storage.trial(*storage.begun(4, epochs=4))
    view = storage.look()[trial]
    assert (view.epoch, view.epochs, view.host, view.device) == (4, 6, "far", "cuda")
    assert view.seconds_an_epoch == pytest.approx(10)
    assert view.seconds_left == pytest.approx(16)  # two epochs, of which four seconds are gone
    assert "unet_small · glid" in view.label


def test_rate_and_end_are_those_of_the_present_stretch_of_work(storage: Storage) -> None:
    for number in range(20):  # yesterday
        storage.ended(86400 + number * 10)
    for number in range(12):  # one a minute, each of two minutes
        storage.ended(60 * number, seconds=120)
    storage.trial(*storage.begun(0, epochs=3))
    for _ in range(6):
        storage.trial()
    found = storage.status()
    assert found.per_hour == pytest.approx(12 / (13 * 60) * 3600)
    assert found.expected_end == pytest.approx(NOW + 6.5 / found.per_hour * 3600)


def test_before_any_trial_ended_the_running_ones_tell_the_end(storage: Storage) -> None:
    storage.trial(*storage.begun(0, epochs=3))
    storage.trial(*storage.begun(0, epochs=3))
    for _ in range(3):
        storage.trial()
    found = storage.status()
    assert found.per_hour is None
    assert found.expected_end == pytest.approx(NOW + (3 + 1) * 60 / 2)  # two at a time, sixty seconds a trial


def test_nothing_running_has_no_end(storage: Storage) -> None:
    storage.ended(5)
    storage.trial()
    assert storage.status().expected_end is None


def test_failures_are_grouped_by_kind_and_message(storage: Storage) -> None:
    def failed(message: str) -> str:
        return storage.trial(*storage.begun(5), {"event": "failed", "time": NOW, "kind": "crashed", "message": message})

    first, other, second = failed("a"), failed("b"), failed("a")
    groups = storage.status().failures
    assert [(group.kind, group.message, group.trials) for group in groups] == [
        ("crashed", "a", (first, second)),
        ("crashed", "b", (other,)),
    ]


def test_a_nodes_load_is_what_its_trials_noted(storage: Storage) -> None:
    def load(**values: float) -> dict[str, Any]:
        return {"event": "system_load", "time": NOW - 1, "node": "a", "values": values}

    storage.trial(*storage.begun(5, host="a"), load(cpu_utilization_percentage=50.0, gpu_0_utilization_percentage=90.0))
    storage.trial(*storage.begun(5, host="a"), load(gpu_1_utilization_percentage=70.0))
    storage.ended(5, host="b")
    nodes = {node.name: node for node in storage.status().nodes}
    assert (nodes["a"].running, nodes["a"].ended, nodes["a"].gpu, nodes["a"].memory) == (2, 0, 80.0, None)
    assert (nodes["b"].running, nodes["b"].ended, nodes["b"].gpu) == (0, 1, None)


def test_a_second_look_reads_what_changed(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    done, runs = storage.ended(5), storage.trial(*storage.begun(5, epochs=2))
    survey = Survey(storage.path)
    trials = tuple(storage.trials)
    assert [view.epoch for view in survey.look(trials, NOW)] == [6, 2]
    read: list[str] = []
    before = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or before(path))
    survey.look(trials, NOW)
    assert not {"spec.json", "events.jsonl"} & set(read)
    append_line(TrialFolder(storage.path, runs).path / "events.jsonl", storage.epoch(NOW, 3))
    found = {view.trial_id: view for view in survey.look(trials, NOW)}
    assert (found[done].state, found[runs].epoch) == ("completed", 3)


def test_damaged_files_are_one_trials_problem(storage: Storage) -> None:
    damaged, good = storage.trial(*storage.begun(5)), storage.trial(*storage.begun(5))
    folder = TrialFolder(storage.path, damaged).path
    (folder / "spec.json").write_text("{")
    (folder / "lease.json").write_text('{"expires"')
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "epo')
    unreadable = storage.ended(5)
    (TrialFolder(storage.path, unreadable).path / "result.json").write_text("{")
    found = storage.look()
    assert [found[trial].state for trial in (damaged, good, unreadable)] == ["running", "running", "failed"]
    assert found[unreadable].kind == "bad_record"


def test_the_command_shows_a_sweep(storage: Storage) -> None:
    from cryobench.conf.compose import load_sweep
    from cryobench.orchestrator.sweep_record import record_sweep

    storage.trial(*storage.begun(5), {"event": "failed", "time": NOW, "kind": "crashed", "message": "no [brackets]"})
    start = time.time() - 5
    running = storage.trial(
        {"event": "attempt", "time": start, "host": "far", "pid": 1, "device": "cuda", "code": "1"},
        storage.epoch(start + 1, 1),
    )
    storage.trial()
    record_sweep(storage.path, load_sweep(["sweep=demo"]), storage.trials)
    told = CliRunner().invoke(app, ["status", "demo", "--storage", str(storage.path)])
    assert told.exit_code == 0, told.output
    for text in ("0 of 3 trials done", "1 running  1 failed  1 waiting", running, "1/6", "far", "no [brackets]"):
        assert text in told.output
    told = CliRunner().invoke(app, ["status", "demo", "--json", "--storage", str(storage.path)])
    plain = json.loads(told.output)
    assert plain["counts"] == {"failed": 1, "running": 1, "waiting": 1}
    assert plain["running"][0]["trial_id"] == running
    assert plain["running"][0]["epoch"] == 1
    assert CliRunner().invoke(app, ["status", "none", "--storage", str(storage.path)]).exit_code == 1


def test_watching_shows_each_change_and_ends_with_the_last_trial(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryobench.conf.compose import load_sweep
    from cryobench.orchestrator.commands import status_view
    from cryobench.orchestrator.sweep_record import record_sweep

    start = time.time() - 5
    begun = {"event": "attempt", "time": start, "host": "far", "pid": 1, "device": "cuda", "code": "1"}
    trial = storage.trial(begun, storage.epoch(start + 1, 1))
    record_sweep(storage.path, load_sweep(["sweep=demo"]), storage.trials)
    failed = {"event": "failed", "time": start + 2, "kind": "corrupt_data", "message": "m"}
    events = TrialFolder(storage.path, trial).path / "events.jsonl"
    monkeypatch.setattr(status_view.time, "sleep", lambda _: append_line(events, failed))
    told = CliRunner().invoke(app, ["status", "demo", "--watch", "--storage", str(storage.path)])
    assert told.exit_code == 0, told.output
    assert told.output.index("1 running") < told.output.index("1 failed")


def test_a_sweep_on_an_object_store_is_seen_from_elsewhere(
    storage: Storage, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryobench.conf.compose import load_sweep
    from cryobench.orchestrator.sweep.sweep_log import SweepLog
    from cryobench.orchestrator.sweep_record import record_sweep
    from cryobench.workers.record.mirror import Mirror

    start = time.time() - 5
    begun = {"event": "attempt", "time": start, "host": "far", "pid": 1, "device": "cuda", "code": "1"}
    trial = storage.trial(begun, storage.epoch(start + 1, 1))
    record_sweep(storage.path, load_sweep(["sweep=demo"]), storage.trials)
    SweepLog(storage.path, "demo").write("retried", trial=trial, message="the node is gone")
    mirror = Mirror(s3)
    mirror.push_trial(storage.path, trial)
    mirror.push_projections(storage.path)
    monkeypatch.setenv("CRYOBENCH_CACHE", str(tmp_path / "elsewhere"))
    told = CliRunner().invoke(app, ["status", "demo", "--storage", s3])
    assert told.exit_code == 0, told.output
    assert "1 running" in told.output
    told = CliRunner().invoke(app, ["logs", trial, "--storage", s3])
    assert "begun on far" in told.output
    assert "driver: retried: the node is gone" in told.output
