"""Two ways to write runs, through MLflow's client and in one transaction: the same comes of both."""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from orchestration import no_op_trial
from sqlalchemy.exc import OperationalError
from support.servers import free_port, local_postgres, mlflow_server, why_no_postgres

from cryobench.conf.compose import load_sweep
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results import leaderboard, sql_run_writer
from cryobench.orchestrator.results.background import BackgroundReconciler
from cryobench.orchestrator.results.leaderboard import Compaction, write_rows
from cryobench.orchestrator.results.reading import TrialReading
from cryobench.orchestrator.results.reconcile import Reconciler, sync
from cryobench.orchestrator.results.run_update import RunMetric, update_of
from cryobench.orchestrator.results.run_writer import ClientRunWriter
from cryobench.orchestrator.results.sql_run_writer import SqlRunWriter
from cryobench.orchestrator.results.tracking import Tracker, default_uri
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.orchestrator.sweep_record import read_sweep, record_sweep
from cryobench.workers.place import Place
from cryobench.workers.record import folder
from cryobench.workers.record.events import AttemptStarted, EpochFinished, Failed
from cryobench.workers.record.folder import TrialFolder


def fill(storage: Path, data_dir: Path, trials: int = 3, epochs: int = 5) -> list[str]:
    """A sweep `demo` of whole trials of a moment each, and one that failed; their ids."""
    asked = ["sweep=demo", "encoders=[unet_small]", "datasets=[glid]", "regimes=[frozen]", "lr_search=null"]
    sweep = load_sweep([*asked, f"protocol.epochs={epochs}", "protocol.eval_every=2"])
    sweep = sweep.model_copy(update={"seeds": tuple(range(trials + 1))})
    plan = make_plan(sweep, Places(storage, data_dir, storage / "cache", storage / "weights"))
    *specs, failing = (trial.spec for trial in plan.trials)
    for spec in specs:
        no_op_trial(spec, Place(storage, data_dir, storage), report=lambda event: None)
    failed = TrialFolder(storage, failing.trial_id)
    failed.write_spec(failing)
    failed.record(AttemptStarted(host="node", pid=1, device="cpu", code="0"))
    failed.record(EpochFinished(epoch=1, loss=1.0, lr=1e-3, seconds=1.0))
    failed.record(Failed(kind="corrupt_data", message="tile 3"))
    record_sweep(storage, sweep, plan.trial_ids)
    return plan.trial_ids


@pytest.fixture
def storage(tmp_path: Path, data_dir: Path) -> Path:
    fill(tmp_path / "storage", data_dir)
    return tmp_path / "storage"


def rows(database: Path) -> dict[str, list[str]]:
    """All that MLflow holds of trials, with runs called by their trials."""
    with sqlite3.connect(database) as connection:
        names = dict(connection.execute("select run_uuid, value from tags where key = 'trial_id'"))
        parents = "select run_uuid from tags where key = 'cryobench.role'"
        names |= {run: "parent" for (run,) in connection.execute(parents)}
        found = {}
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            asked = f"select * from {table} where run_uuid in (select run_uuid from tags where key = 'trial_id')"
            text = "\n".join(sorted(map(str, connection.execute(asked))))
            for run, name in names.items():
                text = text.replace(run, name)
            found[table] = sorted(text.splitlines())
    return found


def through_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqlRunWriter, "of", classmethod(lambda cls, *arguments: None))


def artifacts(storage: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in (storage / "mlartifacts").rglob("*.*"))


def test_both_ways_write_the_same(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sync(storage, default_uri(storage)).problems == {}
    batched, files = rows(storage / "mlflow.db"), artifacts(storage)
    assert len(batched["runs"]) == 4
    assert len(batched["metrics"]) == len(set(batched["metrics"])) > 3 * 5 * 3
    (storage / "mlflow.db").rename(storage / "batched.db")
    (storage / "mlartifacts").rename(storage / "before")
    through_the_client(monkeypatch)
    other = f"sqlite:///{storage / 'other.db'}"
    assert sync(storage, other).problems == {}
    assert rows(storage / "other.db") == batched
    assert artifacts(storage) == files


def test_a_trial_that_is_followed_epoch_by_epoch_ends_as_one_that_is_written_once(
    storage: Path, data_dir: Path
) -> None:
    """Begun, failed, begun again, completed: each seen by a pass of its own."""
    reconciler = Reconciler(storage, default_uri(storage), pytest.fail)
    reconciler.read_sweeps()
    (trial, *_) = (record.trials[0] for record in reconciler.read_sweeps())
    path = storage / "trials" / trial
    lines, result = (path / "events.jsonl").read_text().splitlines(keepends=True), (path / "result.json").read_bytes()
    (path / "result.json").unlink()
    failure = '{"event": "failed", "time": 1.5e9, "kind": "crashed", "message": "x"}\n'
    seen = []
    for text in ("".join(lines[:3]), "".join([*lines[:3], failure]), "".join(lines[:5])):
        (path / "events.jsonl").write_text(text)
        reconciler.reconcile([trial])
        seen.append(run_of(storage, trial))
    assert [run.info.status for run in seen] == ["RUNNING", "FAILED", "RUNNING"]
    assert [run.data.tags["status"] for run in seen] == ["begun", "failed", "begun"]
    assert seen[1].data.tags["failure"] == "crashed"
    assert [run.data.metrics["loss"] for run in seen] == [1 / 2, 1 / 2, 1 / 4]
    (path / "events.jsonl").write_text("".join(lines))
    (path / "result.json").write_bytes(result)
    reconciler.reconcile([trial])
    assert run_of(storage, trial).info.run_id == seen[0].info.run_id
    assert run_of(storage, trial).info.status == "FINISHED"
    history = MlflowClient(tracking_uri=default_uri(storage)).get_metric_history(seen[0].info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5]
    assert run_of(storage, trial).data.metrics["loss"] == 1 / 5


@pytest.mark.parametrize("way", ["one transaction", "the client"])
def test_a_run_is_killed_when_its_trial_is_pruned_and_runs_again_when_that_goes_on(
    storage: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "the client":
        through_the_client(monkeypatch)
    reconciler = Reconciler(storage, default_uri(storage), pytest.fail)
    (trial, other, *_) = (record.trials for record in reconciler.read_sweeps()).__next__()
    whole = {one: (storage / "trials" / one / "events.jsonl").read_text() for one in (trial, other)}
    results = {one: (storage / "trials" / one / "result.json").read_bytes() for one in (trial, other)}
    for one in (trial, other):
        (storage / "trials" / one / "result.json").unlink()
    lines = whole[trial].splitlines(keepends=True)
    stop = '{"event": "stopped_early", "time": 1.5e9, "epoch": 2, "message": "asha: behind"}\n'
    seen = []
    for text in ("".join(lines[:3]), "".join([*lines[:3], stop]), "".join([*lines[:3], stop, lines[0], *lines[3:5]])):
        (storage / "trials" / trial / "events.jsonl").write_text(text)
        reconciler.reconcile([trial])
        seen.append(run_of(storage, trial))
    assert [run.info.status for run in seen] == ["RUNNING", "KILLED", "RUNNING"]
    assert [run.data.tags["status"] for run in seen] == ["begun", "pruned", "begun"]
    assert seen[1].data.tags["stopped_early"] == "asha: behind"
    assert seen[1].info.end_time == 1_500_000_000_000
    (storage / "trials" / trial / "result.json").write_bytes(results[trial])
    reconciler.reconcile([trial])
    ended = run_of(storage, trial)
    assert (ended.info.status, ended.data.tags["status"]) == ("FINISHED", "completed")
    assert {run.info.run_id for run in seen} == {ended.info.run_id}
    first = "".join([*whole[other].splitlines(keepends=True)[:3], stop])  # pruned before any pass saw it
    (storage / "trials" / other / "events.jsonl").write_text(first)
    reconciler.reconcile([other])
    assert run_of(storage, other).info.status == "KILLED"
    assert run_of(storage, other).info.end_time == 1_500_000_000_000


def run_of(storage: Path, trial: str) -> Any:
    client = MlflowClient(tracking_uri=default_uri(storage))
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.trial_id = '{trial}'")
    return run


def test_without_its_memory_nothing_is_written_twice(storage: Path) -> None:
    sync(storage, default_uri(storage))
    before = rows(storage / "mlflow.db")
    for path in (storage / "sweeps" / "runs").iterdir():
        path.unlink()
    reconciler = Reconciler(storage, default_uri(storage), pytest.fail)
    (record,) = reconciler.read_sweeps()
    reconciler.reconcile(record.trials)
    assert rows(storage / "mlflow.db") == before


def test_a_transaction_that_fails_is_left_to_the_client(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []

    def failing(self: SqlRunWriter, connection: Any, updates: Any) -> None:
        failures.append(len(updates))
        connection.execute(sa.insert(self._tables["runs"]), {"run_uuid": "half", "status": "RUNNING"})
        raise OperationalError("insert", {}, Exception("disk I/O error"))

    monkeypatch.setattr(SqlRunWriter, "_write", failing)
    assert sync(storage, default_uri(storage)).problems == {}
    assert failures == [4]
    assert len(rows(storage / "mlflow.db")["runs"]) == 4
    with sqlite3.connect(storage / "mlflow.db") as database:
        assert list(database.execute("select * from runs where run_uuid = 'half'")) == []


def test_tables_of_another_shape_are_left_to_the_client(storage: Path) -> None:
    uri = default_uri(storage)
    assert isinstance(Tracker(uri, storage, "demo")._writer, SqlRunWriter)
    with sqlite3.connect(storage / "mlflow.db") as database:
        database.execute("alter table metrics add column unit varchar(20)")
    assert isinstance(Tracker(uri, storage, "demo")._writer, ClientRunWriter)


def test_what_mlflow_might_refuse_or_cut_is_left_to_the_client(storage: Path) -> None:
    trial = TrialReading(storage, next((storage / "trials").iterdir()).name)
    plain = update_of(trial, None, "parent")
    assert sql_run_writer._is_plain(plain)
    changes: tuple[dict[str, Any], ...] = (
        {"metrics": (RunMetric("a//b", 1.0, 1, 1),)},
        {"metrics": (RunMetric("a?", 1.0, 1, 1),)},
        {"metrics": (RunMetric("loss", float("nan"), 1, 1),)},
        {"metrics": (RunMetric("loss", float("inf"), 1, 1),)},
        {"params": {"long": "x" * 6001}},
        {"tags": {"long": "x" * 8001}},
    )
    for change in changes:
        assert not sql_run_writer._is_plain(replace(plain, **change))


def test_a_compaction_reads_only_the_rows_that_changed(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reconciler = Reconciler(storage, None, pytest.fail)
    (record,) = reconciler.read_sweeps()
    reconciler.reconcile(record.trials)
    read: list[str] = []
    real = leaderboard._read
    monkeypatch.setattr(leaderboard, "_read", lambda path: (read.append(path.stem), real(path))[1])
    whole = reconciler.compact()
    assert (sorted(read), whole.num_rows) == (sorted(record.trials), 4)
    read.clear()
    assert reconciler.compact().equals(whole)
    assert read == []
    first, second, *_ = sorted(record.trials)
    row = {**whole.to_pylist()[0], "trial_id": first, "host": "another"}
    assert write_rows(storage, [row]) == {first: True}
    shutil.rmtree(storage / "trials" / second)
    changed = reconciler.compact()
    assert read == [first]
    assert sorted(changed["trial_id"].to_pylist()) == sorted(set(record.trials) - {second})
    assert changed.filter(changed["trial_id"].to_numpy() == first)["host"].to_pylist() == ["another"]
    assert changed.equals(Compaction(storage).run())


def test_each_file_is_read_once_a_pass(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = folder.read_lines
    monkeypatch.setattr(folder, "read_lines", lambda path: (read.append(path), real(path))[1])
    reconciler = Reconciler(storage, default_uri(storage), pytest.fail)
    (record,) = reconciler.read_sweeps()
    reconciler.reconcile(record.trials)
    assert sorted(path.parent.name for path in read) == sorted(record.trials)
    reconciler.reconcile(record.trials)
    reconciler.finish("demo", record.trials)
    assert len(read) == len(record.trials)


@contextmanager
def postgres_or_skip(folder: Path) -> Iterator[str]:
    """A PostgreSQL's address as MLflow takes it."""
    why = why_no_postgres()
    if why is not None:
        pytest.skip(why)
    with local_postgres(folder) as uri:
        yield uri


@pytest.mark.slow
def test_postgresql_gets_the_same_in_both_ways(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def content(uri: str) -> dict[str, list[str]]:
        engine = sa.create_engine(uri)
        with engine.connect() as connection:
            asked = "select run_uuid, value from tags where key in ('trial_id', 'cryobench.role')"
            names = {str(row.run_uuid): str(row.value) for row in connection.execute(sa.text(asked))}
            found = {}
            for table in ("tags", "params", "metrics", "latest_metrics"):
                text = "\n".join(str(row) for row in connection.execute(sa.text(f"select * from {table}")))
                for run, name in names.items():
                    text = text.replace(run, name)
                found[table] = sorted(text.splitlines())
        engine.dispose()
        return found

    with postgres_or_skip(storage.parent) as uri:
        assert isinstance(Tracker(uri, storage, "demo")._writer, SqlRunWriter)
        assert sync(storage, uri).problems == {}
        batched = content(uri)
        assert sync(storage, uri).problems == {}
        assert content(uri) == batched
    through_the_client(monkeypatch)
    with postgres_or_skip(storage.parent) as uri:
        assert sync(storage, uri).problems == {}
        assert content(uri) == batched


@pytest.mark.slow
def test_a_server_on_postgresql_that_is_killed_in_the_middle_gets_all_when_it_is_back(
    storage: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs before, results while it is away, the rest when it is back; then nothing changes any more."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    told: list[str] = []
    port = free_port()
    results = {path.parent.name: path.read_bytes() for path in (storage / "trials").glob("*/result.json")}
    with postgres_or_skip(storage.parent) as database:
        place = storage.parent / "server"
        place.mkdir()
        with mlflow_server(place, database, port) as uri:
            for trial in results:
                (storage / "trials" / trial / "result.json").unlink()
            running = BackgroundReconciler(storage, read_sweep(storage, "demo"), uri, told.append, interval_s=0.2)
            running.note(results)
            deadline = time.monotonic() + 120
            while len(searched(uri, "tags.status = 'begun'")) < len(results):
                assert time.monotonic() < deadline
                time.sleep(0.2)
        for trial, content in results.items():
            (storage / "trials" / trial / "result.json").write_bytes(content)
        running.note(results)
        while not told:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with mlflow_server(place, database, port) as uri:
            assert running.close(results)
            (complaint,) = told
            assert "cannot be used" in complaint
            completed = searched(uri, "tags.status = 'completed'")
            assert sorted(run.data.tags["trial_id"] for run in completed) == sorted(results)
            client = MlflowClient(tracking_uri=uri)
            for run in completed:
                steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
                assert steps == [1, 2, 3, 4, 5]
                assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"result.json", "samples.png"}
            assert len(searched(uri, "tags.status = 'failed'")) == 1
            done = sync(storage, uri)
            assert (done.tracking_error, done.problems, done.removed_runs) == (None, {}, 0)
            assert len(searched(uri, "")) == len(results) + 2


def searched(uri: str, query: str) -> list[Any]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], query))
