"""Reconciling: each trial by itself, whatever ran before, whoever else is at it, however often."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cryobench.conf.benchmark_editions import EDITIONS
from cryobench.conf.compose import load_sweep
from cryobench.conf.errors import ConfigError, TrackingError
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results import background, reconcile, sql_run_writer
from cryobench.orchestrator.results.background import BackgroundReconciler
from cryobench.orchestrator.results.leaderboard import read_leaderboard, table_path
from cryobench.orchestrator.results.ranking import result_tables
from cryobench.orchestrator.results.reconcile import Reconciler, sync
from cryobench.orchestrator.results.run_content import fit_names
from cryobench.orchestrator.results.run_update import RunUpdate
from cryobench.orchestrator.results.run_writer import ClientRunWriter
from cryobench.orchestrator.results.tracking import Tracker, default_uri
from cryobench.orchestrator.sweep.plan import Plan, make_plan
from cryobench.orchestrator.sweep_record import read_sweep, record_sweep
from cryobench.workers.place import Place
from cryobench.workers.record.events import AttemptStarted, Failed, StoppedEarly
from cryobench.workers.record.folder import RESULT, TrialFolder
from cryobench.workers.trial import run_trial

OVERRIDES = (
    "sweep=demo",
    "encoder=unet_small",
    "dataset=glid",
    "lr_search=null",
    "protocol.epochs=1",
    "protocol.eval_every=1",
    "protocol.crops_per_tile=1",
    "protocol.bootstrap_samples=100",
)


def planned(where: Places, *overrides: str) -> Plan:
    return make_plan(load_sweep([*OVERRIDES, *overrides]), where)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Places:
    """A storage with a sweep `demo` of two finished trials."""
    folder = tmp_path_factory.mktemp("finished")
    where = Places(folder / "storage", data_dir, folder / "cache", folder / "weights")
    plan = planned(where, "regimes=[frozen,finetune]")
    record_sweep(where.storage, plan.sweep, plan.trial_ids)
    for trial in plan.trials:
        run_trial(trial.spec, Place(where.storage, data_dir, where.cache_dir, device="cpu"))
    return where


@pytest.fixture
def storage(finished: Places, tmp_path: Path) -> Path:
    shutil.copytree(finished.storage, tmp_path / "copy")
    return tmp_path / "copy"


def beside(storage: Path, uri: str | None, warn: Callable[[str], Any] = pytest.fail, sweep: str = "demo") -> Any:
    return BackgroundReconciler(storage, read_sweep(storage, sweep), uri, warn, interval_s=0.05)


def client(storage: Path) -> Any:
    return MlflowClient(tracking_uri=default_uri(storage))


def runs(storage: Path, experiment: str = "demo") -> list[Any]:
    found = client(storage).get_experiment_by_name(experiment)
    return [r for r in client(storage).search_runs([found.experiment_id]) if "trial_id" in r.data.tags]


def ids(storage: Path) -> list[str]:
    return list(read_sweep(storage, "demo").trials)


def test_a_trial_that_an_older_sweep_lists_and_another_finishes_has_its_row(storage: Path, finished: Places) -> None:
    """`paper_frozen` interrupted, then `full`: the trials belong to both, and the second writes them."""
    plan = planned(finished, "regimes=[frozen,finetune]", "name=later")
    record_sweep(storage, plan.sweep, plan.trial_ids)
    running = beside(storage, default_uri(storage), sweep="later")
    running.note(plan.trial_ids)
    assert running.close(plan.trial_ids)
    rows = read_leaderboard(storage).to_pylist()
    assert [row["sweep"] for row in rows] == ["demo", "demo"]
    assert sorted(r.data.tags["trial_id"] for r in runs(storage, "later")) == sorted(plan.trial_ids)
    assert {r.info.run_id for r in runs(storage, "demo")} == {row["mlflow_run_id"] for row in rows}


def test_a_trial_that_was_stopped_early_has_no_row_even_if_it_failed_before(storage: Path, finished: Places) -> None:
    trial, other = ids(storage)
    folder = TrialFolder(storage, trial)
    (folder.path / "result.json").unlink()
    folder.record(Failed(kind="crashed", message="x"))
    assert sync(storage, default_uri(storage)).rows == 2
    folder.record(AttemptStarted(host="h", pid=1, device="cpu", code="0"))
    folder.record(StoppedEarly(epoch=1, message="asha: behind"))
    running = beside(storage, default_uri(storage))
    running.note([trial])
    began = time.monotonic()
    assert running.close([trial])
    assert time.monotonic() - began < 10  # it has ended: no result of it is waited for
    assert read_leaderboard(storage)["trial_id"].to_pylist() == [other]
    assert sync(storage, default_uri(storage)).rows == 1
    (run,) = (run for run in runs(storage) if run.data.tags["trial_id"] == trial)
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "pruned")
    experiment = client(storage).get_experiment_by_name("demo").experiment_id
    (parent,) = (r for r in client(storage).search_runs([experiment]) if "trial_id" not in r.data.tags)
    assert (parent.data.tags["trials.pruned"], parent.data.tags["trials.completed"]) == ("1", "1")
    tables = result_tables(read_leaderboard(storage).to_pylist(), next(iter(EDITIONS)))
    assert [cell.trials for table in tables for row in table.rows for cell in row.cells.values()] == [(other,)]


def test_an_exception_of_any_kind_is_one_trials_and_is_told(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = ids(storage)
    real, told = reconcile.leaderboard_row, list[str]()

    def strange(folder: TrialFolder, *rest: Any) -> Any:
        if folder.trial_id == bad:
            raise ZeroDivisionError("a bug")
        return real(folder, *rest)

    monkeypatch.setattr(reconcile, "leaderboard_row", strange)
    running = beside(storage, None, told.append)
    running.note([bad, good])
    assert running.close() is False
    assert told == [f"Warning: Trial {bad}: ZeroDivisionError: a bug"] or told == [
        f"Trial {bad}: ZeroDivisionError: a bug"
    ]
    assert read_leaderboard(storage)["trial_id"].to_pylist() == [good]
    monkeypatch.undo()
    assert sync(storage, None).rows == 2


def test_a_pass_that_fails_as_a_whole_loses_no_news(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures, told = Reconciler.reconcile, [], []
    tried = threading.Event()

    def failing(self: Reconciler, *a: Any, **k: Any) -> Any:
        if not failures:
            failures.append(True)
            tried.set()
            raise OSError("the disk hiccups")
        return real(self, *a, **k)

    monkeypatch.setattr(Reconciler, "reconcile", failing)
    running = beside(storage, None, told.append)
    running.note(ids(storage))
    assert tried.wait(10)
    assert running.close()
    assert len(told) == 1
    assert "the disk hiccups" in told[0]
    assert read_leaderboard(storage).num_rows == 2


def test_a_result_that_becomes_visible_after_its_news_is_found(storage: Path, tmp_path: Path) -> None:
    """As on a network file system whose attributes are cached: the message is faster than the file."""
    late = TrialFolder(storage, ids(storage)[0])
    (late.path / RESULT).rename(tmp_path / "result.json")
    running = beside(storage, None)
    running.note(ids(storage))
    timer = threading.Timer(1.0, lambda: (tmp_path / "result.json").rename(late.path / RESULT))
    timer.start()
    assert running.close(ids(storage))
    timer.join()
    assert read_leaderboard(storage).num_rows == 2


def test_the_leaderboard_is_there_during_a_sweep(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert background._COMPACT_S <= 60
    monkeypatch.setattr(background, "_COMPACT_S", 0.1)
    running = beside(storage, None)
    running.note(ids(storage))
    deadline = threading.Event()
    for _ in range(100):
        if table_path(storage).exists() and read_leaderboard(storage).num_rows == 2:
            break
        deadline.wait(0.1)
    else:
        pytest.fail("no leaderboard before the sweep's end")
    running.close()


def test_rows_that_appear_after_a_sync_began_stay(
    storage: Path, finished: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver beside it finishes a trial after the scan of the folders."""
    late = ids(storage)[1]
    shutil.move(storage / "trials" / late, storage / "late")
    real = Reconciler.compact

    def meanwhile(self: Reconciler) -> Any:
        if (storage / "late").exists():
            shutil.move(storage / "late", storage / "trials" / late)
            Reconciler(storage, None).reconcile([late])
        return real(self)

    monkeypatch.setattr(Reconciler, "compact", meanwhile)
    assert sync(storage, None).rows == 2


def test_without_tracking_the_run_ids_stay(storage: Path) -> None:
    sync(storage, default_uri(storage))
    before = read_leaderboard(storage)["mlflow_run_id"].to_pylist()
    assert None not in before
    running = beside(storage, None)
    running.note(ids(storage))
    assert running.close()
    sync(storage, None)
    assert read_leaderboard(storage)["mlflow_run_id"].to_pylist() == before


def reclassed(storage: Path, trial: str, classes: list[str]) -> None:
    path = storage / "trials" / trial / RESULT
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": classes}))


def test_classes_whose_names_mlflow_does_not_take_are_written_all_the_same(storage: Path) -> None:
    first, _ = ids(storage)
    reclassed(storage, first, ["background", "lake (ice-covered)"])
    done = sync(storage, default_uri(storage))
    assert (done.tracking_error, done.problems) == (None, {})
    run = next(r for r in runs(storage) if r.data.tags["trial_id"] == first)
    assert "test_iou/lake _ice-covered_" in run.data.metrics
    assert run.data.tags["classes"] == "background; lake (ice-covered)"


def test_names_are_made_fit_and_stay_different() -> None:
    assert fit_names(["a/b", "a?b", "a_b", "..", "Fluß 1.0-x"]) == ["a_b", "a_b 2", "a_b 3", "_", "Fluß 1.0-x"]


def test_what_mlflow_refuses_is_told_once_with_the_trial_and_blocks_no_other(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    bad, good = ids(storage)
    real = ClientRunWriter._write_one

    def refusing(self: ClientRunWriter, update: RunUpdate) -> str:
        if update.trial == bad:
            raise MlflowException("Invalid metric name", error_code=INVALID_PARAMETER_VALUE)
        return real(self, update)

    monkeypatch.setattr(ClientRunWriter, "_write_one", refusing)
    monkeypatch.setattr(sql_run_writer, "_is_plain", lambda update: update.trial != bad)
    told: list[str] = []
    running = beside(storage, default_uri(storage), told.append)
    running.note([bad, good])
    assert running.close() is False
    assert len(told) == 1
    assert f"MLflow refuses trial {bad}" in told[0]
    assert "test_miou" in next(r for r in runs(storage) if r.data.tags["trial_id"] == good).data.metrics
    assert read_leaderboard(storage).num_rows == 2
    done = sync(storage, default_uri(storage))
    assert list(done.problems) == [bad]
    assert done.tracking_error is None


def test_a_start_does_not_read_the_runs_of_an_experiment(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync(storage, default_uri(storage))
    asked: list[Any] = []
    monkeypatch.setattr(MlflowClient, "search_runs", lambda self, *a, **k: asked.append((a, k)))
    monkeypatch.setattr(MlflowClient, "create_run", lambda self, *a, **k: pytest.fail("made a run twice"))
    running = beside(storage, default_uri(storage))
    assert running.close()
    assert asked == []


def test_without_its_memory_a_run_is_found_by_its_tag(storage: Path) -> None:
    sync(storage, default_uri(storage))
    before = sorted(r.info.run_id for r in runs(storage))
    shutil.rmtree(storage / "sweeps" / "runs")
    running = beside(storage, default_uri(storage))
    running.note(ids(storage))
    assert running.close()
    assert sorted(r.info.run_id for r in runs(storage)) == before


def test_a_database_that_was_deleted_is_filled_anew(storage: Path) -> None:
    sync(storage, default_uri(storage))
    (storage / "mlflow.db").unlink()
    running = beside(storage, default_uri(storage))
    running.note(ids(storage))
    assert running.close()
    assert len(runs(storage)) == 2
    assert {r.info.run_id for r in runs(storage)} == set(read_leaderboard(storage)["mlflow_run_id"].to_pylist())


def test_a_run_that_was_deleted_comes_back_and_second_ones_go(storage: Path) -> None:
    sync(storage, default_uri(storage))
    gone, kept = runs(storage)
    client(storage).delete_run(gone.info.run_id)
    experiment = kept.info.experiment_id
    client(storage).create_run(experiment, tags={"trial_id": kept.data.tags["trial_id"]})
    client(storage).create_run(experiment, tags={"trial_id": "0" * 16})
    done = sync(storage, default_uri(storage))
    assert done.removed_runs == 2
    assert sorted(r.data.tags["trial_id"] for r in runs(storage)) == sorted(ids(storage))
    assert kept.info.run_id in {r.info.run_id for r in runs(storage)}


def test_two_at_once_make_no_run_twice(storage: Path) -> None:
    two = [beside(storage, default_uri(storage)) for _ in range(2)]
    for running in two:
        running.note(ids(storage))
    assert all(running.close() for running in two)
    assert len(runs(storage)) == 2
    assert read_leaderboard(storage).num_rows == 2


def test_a_damaged_row_is_written_anew(storage: Path) -> None:
    sync(storage, None)
    whole = read_leaderboard(storage)
    (path, *_) = sorted((storage / "leaderboard" / "trials").glob("*.parquet"))
    path.write_bytes(b"PAR1")
    table_path(storage).write_bytes(b"")
    assert sync(storage, None).rows == 2
    assert read_leaderboard(storage).equals(whole)


def test_a_storage_that_was_moved_keeps_its_artifacts(storage: Path, tmp_path: Path) -> None:
    sync(storage, default_uri(storage))
    moved = tmp_path / "elsewhere" / "storage of mine"
    moved.parent.mkdir()
    storage.rename(moved)
    told: list[str] = []
    done = sync(moved, default_uri(moved), tell=told.append)
    assert done.tracking_error is None
    assert len(told) == 1
    assert "was moved or copied" in told[0]
    for run in runs(moved):
        path = client(moved).download_artifacts(run.info.run_id, "result.json", str(tmp_path))
        assert json.loads(Path(path).read_text())["trial_id"] == run.data.tags["trial_id"]
    assert sync(moved, default_uri(moved), tell=pytest.fail).tracking_error is None


def test_a_server_that_is_gone_at_the_start_is_said(storage: Path) -> None:
    with pytest.raises(TrackingError, match="cannot be used"):
        beside(storage, "http://user:secret@127.0.0.1:9")
    with pytest.raises(TrackingError) as caught:
        beside(storage, "http://user:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


def test_specs_are_the_same_in_both(finished: Places) -> None:
    spec: TrialSpec = planned(finished, "regime=frozen").trials[0].spec
    assert TrialFolder(finished.storage, spec.trial_id).spec() == spec


def test_two_first_starts_at_once_make_one_database(storage: Path) -> None:
    """One of the two ended in a migration's traceback."""
    script = (
        "import sys; from pathlib import Path; from cryobench.orchestrator.results.reconcile import Reconciler; "
        "Reconciler(Path(sys.argv[1]), sys.argv[2]).tracker('demo')"
    )
    command = [sys.executable, "-c", script, str(storage), default_uri(storage)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said


def test_runs_that_a_driver_made_after_the_scan_stay(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = ids(storage)[1]
    shutil.move(storage / "trials" / late, storage / "late")
    real = Tracker.take_stock

    def meanwhile(self: Tracker, known: Any) -> int:
        if (storage / "late").exists():
            shutil.move(storage / "late", storage / "trials" / late)
        return real(self, known)

    monkeypatch.setattr(Tracker, "take_stock", meanwhile)
    sync(storage, default_uri(storage))
    monkeypatch.undo()
    assert sync(storage, default_uri(storage)).removed_runs == 0
    assert len(runs(storage)) == 2


def test_a_run_deleted_beside_a_driver_is_made_again(storage: Path) -> None:
    uri = default_uri(storage)
    first = Reconciler(storage, uri)
    first.read_sweeps()
    first.reconcile(ids(storage))
    for run in runs(storage):
        client(storage).delete_run(run.info.run_id)
    for trial in ids(storage):  # news: a line more
        with (storage / "trials" / trial / "events.jsonl").open("a") as file:
            file.write('{"event": "note", "time": 1, "message": "x"}\n')
        path = storage / "trials" / trial / RESULT
        path.write_text(path.read_text() + "\n")
    first.reconcile(ids(storage))
    assert len(runs(storage)) == 2
    assert first.problems == {}


def test_a_file_that_cannot_be_read_is_one_trials_problem(storage: Path) -> None:
    bad, good = sorted(ids(storage))
    (storage / "trials" / bad / "samples.png").unlink()
    (storage / "trials" / bad / "samples.png").mkdir()
    (storage / "trials" / bad / "samples.png" / "x").symlink_to("nowhere")
    done = sync(storage, default_uri(storage))
    assert done.tracking_error is None
    assert list(done.problems) == [bad]
    assert "test_miou" in next(r for r in runs(storage) if r.data.tags["trial_id"] == good).data.metrics


def test_single_trials_that_a_sweep_lists_later_leave_their_experiment(storage: Path) -> None:
    record = (storage / "sweeps" / "demo.json").read_text()
    (storage / "sweeps" / "demo.json").unlink()
    sync(storage, default_uri(storage))
    assert len(runs(storage, "single")) == 2
    (storage / "sweeps" / "demo.json").write_text(record)
    assert sync(storage, default_uri(storage)).removed_runs == 2
    assert runs(storage, "single") == []


def test_rows_of_a_later_release_are_left_alone_and_told(storage: Path) -> None:
    import pyarrow.parquet as pq

    sync(storage, None)
    (path, _) = sorted((storage / "leaderboard" / "trials").glob("*.parquet"))
    later = pq.read_table(path).replace_schema_metadata({"cryobench_format": "99"})
    pq.write_table(later, path)
    before = path.read_bytes()
    assert "later cryobench" in sync(storage, None).problems[path.stem]
    assert path.read_bytes() == before


def test_a_result_of_a_later_release_takes_no_row_away(storage: Path) -> None:
    sync(storage, None)
    before = read_leaderboard(storage)
    path = storage / "trials" / ids(storage)[0] / RESULT
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    assert list(sync(storage, None).problems) == [ids(storage)[0]]
    assert read_leaderboard(storage).equals(before)


def test_run_ids_survive_a_damaged_leaderboard_without_tracking(storage: Path) -> None:
    sync(storage, default_uri(storage))
    before = read_leaderboard(storage)["mlflow_run_id"].to_pylist()
    shutil.rmtree(storage / "leaderboard")
    sync(storage, None)
    assert read_leaderboard(storage)["mlflow_run_id"].to_pylist() == before


def test_a_record_without_requests_stops_only_itself(storage: Path) -> None:
    (storage / "sweeps" / "other.json").write_text('{"requests": [], "trials": [], "name": "other", "created": 1}')
    done = sync(storage, None)
    assert (done.rows, list(done.problems)) == (2, ["sweeps"])


def test_a_storage_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No storage at"):
        sync(tmp_path / "typo", None)
