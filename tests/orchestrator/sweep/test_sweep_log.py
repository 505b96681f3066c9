"""What a driver logs, and how a trial's story is told from it and from its folder."""

import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cryobench.conf.compose import load_sweep
from cryobench.conf.errors import ConfigError
from cryobench.orchestrator.cli import app
from cryobench.orchestrator.commands.logs import find_trial
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.observer import SweepObserver
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.orchestrator.sweep.sweep_log import SweepLog, lines_about, logs_folder
from cryobench.workers.record.events import (
    AttemptStarted,
    CheckpointDiscarded,
    Decoding,
    Ended,
    EpochFinished,
    Failed,
    Placed,
    Stumbled,
    SystemLoad,
)
from cryobench.workers.record.files import read_lines
from cryobench.workers.record.folder import TrialFolder

PLACED = Placed(node="0f", host="node-1", pid=7, device="cuda")
STARTED = AttemptStarted(host="node-1", pid=7, device="cuda", code="0.1")


def lines(storage: Path, sweep: str = "demo") -> list[dict[str, Any]]:
    return [line for path in sorted(logs_folder(storage, sweep).iterdir()) for line in read_lines(path)]


@pytest.fixture
def observer(where: Places) -> SweepObserver:
    plan = make_plan(load_sweep(["sweep=demo", "datasets=[glid]"]), where)
    return SweepObserver.of(plan, where.storage, "postgresql://me:secret@host/db")


def test_a_trials_way_through_a_sweep_is_logged(where: Places, observer: SweepObserver) -> None:
    for event in (
        PLACED,
        Decoding(decoded=1, tiles=8),
        EpochFinished(epoch=1, loss=0.5, lr=1e-3, seconds=1.0),
        EpochFinished(epoch=2, loss=0.4, lr=1e-3, seconds=1.0),
        CheckpointDiscarded(reason="torn"),
        Stumbled(kind="hung_read", message="m"),
    ):
        observer.tell("t", event)
    observer.recover("t", "hung_read on node-1, tried elsewhere")
    observer.tell("t", PLACED.model_copy(update={"host": "node-2"}))
    observer.tell("t", Ended(status="completed"))
    observer.warn("MLflow cannot be reached")
    observer.driver_ends({"completed": 1}, False)
    found = lines(where.storage)
    assert {line["format"] for line in found} == {1}
    assert all({"time", "level", "event"} <= line.keys() for line in found)
    assert [(line["event"], line["level"], line.get("trial"), line.get("node")) for line in found[1:]] == [
        ("started", "info", "t", "node-1"),
        ("epoch", "info", "t", "node-1"),  # the second comes within a minute
        ("checkpoint_discarded", "warning", "t", "node-1"),
        ("attempt_failed", "warning", "t", "node-1"),
        ("retried", "warning", "t", "node-1"),
        ("started", "info", "t", "node-2"),
        ("ended", "info", "t", "node-2"),
        ("warning", "warning", None, None),
        ("driver_ended", "info", None, None),
    ]
    assert found[0]["event"] == "driver_started"
    assert found[0]["states"]["waiting"] > 1


def test_no_password_is_logged(where: Places, observer: SweepObserver) -> None:
    observer.warn("no server at postgresql://me:secret@host/db: secret was refused")
    text = "".join(path.read_text() for path in logs_folder(where.storage, "demo").iterdir())
    assert "secret" not in text
    assert "postgresql://me:***@host/db" in text


def test_a_log_that_cannot_be_written_says_how_much_it_lost(tmp_path: Path) -> None:
    log = SweepLog(tmp_path, "s")
    (tmp_path / "sweeps").write_text("no folder")
    log.write("lost")
    log.write("lost")
    (tmp_path / "sweeps").unlink()
    log.write("found")
    log.write("more")
    assert [(line["event"], line.get("lines_lost")) for line in lines(tmp_path, "s")] == [("found", 2), ("more", None)]


def test_threads_write_whole_lines_into_parts_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryobench.orchestrator.sweep.sweep_log._PART_BYTES", 5000)
    log = SweepLog(tmp_path, "s")

    def write(name: str) -> None:
        for number in range(50):
            log.write("line", trial=name, number=number)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(tmp_path, "s")
    assert sorted((line["trial"], line["number"]) for line in found) == [(n, i) for n in "abcd" for i in range(50)]
    assert len(list(logs_folder(tmp_path, "s").iterdir())) >= 3
    assert [line["number"] for line in lines_about(tmp_path, "a")] == list(range(50))


def told(*arguments: str, storage: Path) -> str:
    done = CliRunner().invoke(app, ["logs", *arguments, "--storage", str(storage)])
    assert done.exit_code == 0, done.output
    return done.output


def test_logs_tell_the_story_of_a_trial(where: Places, one_trial: Any) -> None:
    spec = one_trial()
    folder = TrialFolder(where.storage, spec.trial_id)
    folder.write_spec(spec)
    folder.record(STARTED)
    folder.record(EpochFinished(epoch=1, loss=0.5, lr=1e-3, seconds=2.0, tiles=16, val_miou=50.0))
    folder.record(SystemLoad(node="node-1", values={"cpu_utilization_percentage": 12.5}))
    SweepLog(where.storage, "demo").write("retried", trial=spec.trial_id, node="node-1", message="the worker died")
    folder.record(Failed(kind="corrupt_data", message="tile 4 [x]", trace="Traceback: here"))
    text = told(spec.trial_id[:6], storage=where.storage).splitlines()
    assert [line.split("  ", 1)[1] for line in text] == [
        "begun on node-1, process 7, cuda, cryobench 0.1",
        "epoch 1: loss 0.5000, lr 0.001, 2 s, 8 tiles/s, validation mIoU 50.00",
        "driver: retried: the worker died (node node-1)",
        "failed (corrupt_data): tile 4 [x]",
    ]
    whole = told(spec.trial_id, "--all", storage=where.storage)
    assert "load of node-1: cpu_utilization_percentage 12.5" in whole
    assert "Traceback: here" in whole


def test_following_ends_with_the_trial(where: Places, one_trial: Any) -> None:
    spec = one_trial()
    folder = TrialFolder(where.storage, spec.trial_id)
    folder.write_spec(spec)
    folder.record(STARTED)
    later = threading.Timer(1.5, lambda: folder.record(Failed(kind="corrupt_data", message="late")))
    later.start()
    text = told(spec.trial_id, "--follow", storage=where.storage)
    assert text.count("begun on") == 1
    assert text.count("late") == 1


def test_a_trial_is_found_by_its_beginning_or_named_near(tmp_path: Path) -> None:
    known = ["aaaa000000000001", "aaaa000000000002", "bbbb000000000001"]
    assert find_trial(tmp_path, "bb", known) == "bbbb000000000001"
    assert find_trial(tmp_path, "aaaa000000000001", known) == "aaaa000000000001"
    with pytest.raises(ConfigError, match="begins 2 trial ids: aaaa000000000001, aaaa000000000002"):
        find_trial(tmp_path, "aaaa", known)
    with pytest.raises(ConfigError, match="Near: bbbb000000000001"):
        find_trial(tmp_path, "bbbb000000000009", known)
    with pytest.raises(ConfigError, match=r"\(0 were\)"):
        find_trial(tmp_path, "a", [])
