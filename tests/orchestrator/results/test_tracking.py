"""MLflow and leaderboard as reconcilers of trial folders, with a real SQLite store and a real server."""

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cryobench.conf.compose import load_sweep
from cryobench.conf.errors import ConfigError, TrackingError, UnknownNameError
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.background import BackgroundReconciler
from cryobench.orchestrator.results.leaderboard import SCHEMA, read_leaderboard, table_path
from cryobench.orchestrator.results.query import keep, run_sql
from cryobench.orchestrator.results.reconcile import sync
from cryobench.orchestrator.results.tracking import Tracker, default_uri
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.orchestrator.sweep_record import record_sweep
from cryobench.workers.place import Place
from cryobench.workers.record.events import AttemptStarted, Failed
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Places:
    """A storage with a sweep of one finished and one failed trial."""
    folder = tmp_path_factory.mktemp("finished")
    where = Places(folder / "storage", data_dir, folder / "cache", folder / "weights")
    overrides = ["sweep=demo", "encoder=unet_small", "dataset=glid", "lr_search=null", "protocol.epochs=2"]
    overrides += ["protocol.eval_every=1", "protocol.crops_per_tile=1", "protocol.bootstrap_samples=100"]
    plan = make_plan(load_sweep([*overrides, "regimes=[frozen,finetune]"]), where)
    record_sweep(where.storage, plan.sweep, plan.trial_ids)
    first, second = (trial.spec for trial in plan.trials)
    run_trial(first, Place(where.storage, data_dir, where.cache_dir, device="cpu"))
    failed = TrialFolder(where.storage, second.trial_id)
    failed.write_spec(second)
    failed.record(AttemptStarted(host="node-1", pid=1, device="cpu", code="0"))
    failed.record(Failed(kind="corrupt_data", message="tile 3 of train/optical"))
    return where


@pytest.fixture
def storage(finished: Places, tmp_path: Path) -> Path:
    shutil.copytree(finished.storage, tmp_path / "copy")
    return tmp_path / "copy"


def runs(storage: Path, experiment: str = "demo") -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(storage))
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def dump(storage: Path) -> dict[str, list[Any]]:
    with sqlite3.connect(storage / "mlflow.db") as database:
        tables = ["experiments", "runs", "tags", "params", "metrics", "latest_metrics", "experiment_tags"]
        return {table: sorted(map(str, database.execute(f"select * from {table}"))) for table in tables}


def test_sync_rebuilds_everything_from_the_folders(storage: Path) -> None:
    done = sync(storage, default_uri(storage))
    assert (done.sweeps, done.trials, done.rows, done.tracking_error) == (1, 2, 2, None)
    by_status = {run.data.tags.get("status"): run for run in runs(storage)}
    run, failed = by_status["completed"], by_status["failed"]
    parent = next(r for r in runs(storage) if r.data.tags.get("cryobench.role") == "sweep")
    assert {r.data.tags["mlflow.parentRunId"] for r in (run, failed)} == {parent.info.run_id}
    tags = {key: run.data.tags[key] for key in ("encoder", "dataset", "regime", "weights")}
    assert tags == {"encoder": "unet_small", "dataset": "glid", "regime": "frozen", "weights": "scratch"}
    assert run.info.status == "FINISHED"
    assert failed.info.status == "FAILED"
    assert failed.data.tags["failure"] == "corrupt_data"
    assert run.data.params["lr"] == "0.001"
    assert run.data.params["protocol.epochs"] == "2"
    result = TrialFolder(storage, run.data.tags["trial_id"]).result()
    assert result is not None
    assert result.test is not None
    assert run.data.metrics["test_miou"] == result.test.miou
    assert {"loss", "val_miou", "test_iou/lake"} <= run.data.metrics.keys()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(storage))
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"samples.png", "confusion.png", "result.json", "spec.json"}


def test_syncing_twice_changes_nothing(storage: Path) -> None:
    sync(storage, default_uri(storage))
    before, table = dump(storage), table_path(storage).read_bytes()
    stamp = table_path(storage).stat().st_mtime_ns
    sync(storage, default_uri(storage))
    assert dump(storage) == before
    assert table_path(storage).read_bytes() == table
    assert table_path(storage).stat().st_mtime_ns == stamp


def test_deleted_reconcilers_come_back_the_same(storage: Path) -> None:
    sync(storage, default_uri(storage))
    first = read_leaderboard(storage).drop_columns(["mlflow_run_id"])
    shutil.rmtree(storage / "leaderboard")
    (storage / "mlflow.db").unlink()
    sync(storage, default_uri(storage))
    assert read_leaderboard(storage).drop_columns(["mlflow_run_id"]).equals(first)
    assert len(runs(storage)) == 3


def test_the_leaderboard_holds_identity_outcome_provenance_and_cost(storage: Path) -> None:
    sync(storage, None)
    table = read_leaderboard(storage)
    assert table.schema == SCHEMA
    rows = {row["status"]: row for row in table.to_pylist()}
    done, failed = rows["completed"], rows["failed"]
    assert (done["sweep"], done["encoder"], done["dataset"], done["regime"]) == ("demo", "unet_small", "glid", "frozen")
    assert done["test_miou_low"] <= done["test_miou"] <= done["test_miou_high"]
    assert done["classes"] == ["background", "lake"]
    assert done["data_origin"] == "generated (seed 234, 64 px)"
    assert dict(done["libraries"])["torch"]
    assert done["parameters"] > 0
    assert (failed["failure_kind"], failed["message"]) == ("corrupt_data", "tile 3 of train/optical")
    assert failed["test_miou"] is None
    files = sorted(p.stem for p in (storage / "leaderboard" / "trials").glob("*.parquet"))
    assert files == sorted(table["trial_id"].to_pylist())
    assert pq.read_schema(table_path(storage)) == SCHEMA


def test_rows_of_vanished_trials_vanish(storage: Path) -> None:
    sync(storage, None)
    failed = next(row for row in read_leaderboard(storage).to_pylist() if row["status"] == "failed")
    shutil.rmtree(storage / "trials" / failed["trial_id"])
    assert sync(storage, None).rows == 1


def test_single_trials_have_an_experiment_of_their_own(storage: Path, finished: Places) -> None:
    (storage / "sweeps" / "demo.json").unlink()
    sync(storage, default_uri(storage))
    assert len(runs(storage, "single")) == 3
    assert set(read_leaderboard(storage)["sweep"].to_pylist()) == {"single"}


def test_beside_a_sweep_it_writes_as_trials_come(storage: Path) -> None:
    from cryobench.orchestrator.sweep_record import read_sweep

    record = read_sweep(storage, "demo")
    reconciler = BackgroundReconciler(storage, record, default_uri(storage), pytest.fail, interval_s=0.05)
    reconciler.note(record.trials)
    assert reconciler.close()
    table = read_leaderboard(storage)
    assert table.num_rows == 2
    assert None not in table["mlflow_run_id"].to_pylist()
    before = dump(storage)
    assert sync(storage, default_uri(storage)).tracking_error is None
    assert dump(storage) == before


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_server_that_is_down_gets_one_message_and_nothing_is_lost(storage: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TrackingError, match=rf"MLflow at {uri} cannot be used .*start the server .*cryobench sync"):
        Tracker(uri, storage, "demo")
    done = sync(storage, uri)
    assert done.tracking_error is not None
    assert read_leaderboard(storage).num_rows == 2


def test_a_database_that_is_none_gets_one_message(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no database" * 100)
    with pytest.raises(TrackingError, match="cannot be used"):
        Tracker(f"sqlite:///{tmp_path / 'bad.db'}", storage, "demo")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Callable[[], None]]]:
    """An MLflow server, and a function that ends it, which the last test with it does."""
    tmp_path = tmp_path_factory.mktemp("server")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def end() -> None:
        process.terminate()
        process.wait(60)

    yield f"http://127.0.0.1:{port}", end
    if process.poll() is None:
        end()


def test_a_server_gets_runs_and_pictures(storage: Path, server: tuple[str, Callable[[], None]]) -> None:
    from mlflow import MlflowClient

    uri, _ = server
    assert sync(storage, uri).tracking_error is None
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.status = 'completed' and tags.regime = 'frozen'")
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"samples.png", "confusion.png"}


def test_two_storages_with_sweeps_of_one_name_share_a_server(
    storage: Path, finished: Places, tmp_path: Path, server: tuple[str, Callable[[], None]]
) -> None:
    from mlflow import MlflowClient

    uri, _ = server
    first, second = tmp_path / "first", tmp_path / "second"
    told: dict[str, list[str]] = {}
    for place in (first, second):
        shutil.copytree(finished.storage, place)
        listed = place / "sweeps" / "demo.json"
        listed.with_name("shared.json").write_text(json.dumps(json.loads(listed.read_text()) | {"name": "shared"}))
        listed.unlink()
    for place in (first, second, first, second):
        told[place.name] = []
        done = sync(place, uri, tell=told[place.name].append)
        assert (done.removed_runs, done.tracking_error, done.problems) == (0, None, {})
    client = MlflowClient(tracking_uri=uri)
    mine, other = (json.loads((place / "storage.json").read_text())["id"] for place in (first, second))
    assert mine != other
    assert told["first"] == []
    assert len(told["second"]) == 1
    assert f"the experiment shared@{other[:6]}" in told["second"][0]
    for name, owner in (("shared", mine), (f"shared@{other[:6]}", other)):
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        assert experiment.tags["cryobench.storage"] == owner
        assert len(client.search_runs([experiment.experiment_id])) == 3


def test_an_experiment_of_an_earlier_release_is_taken_over_by_who_comes_first(storage: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    client = MlflowClient(tracking_uri=uri)
    made = client.create_experiment("demo", artifact_location=(tmp_path / "artifacts").as_uri())
    client.delete_experiment(made)
    assert Tracker(uri, storage, "demo").experiment == "demo"
    other = tmp_path / "other"
    (other / "trials").mkdir(parents=True)
    assert Tracker(uri, other, "demo").experiment.startswith("demo@")
    assert Tracker(uri, tmp_path / "copy-of-a-store", "demo", "s3://bucket/a").experiment.startswith("demo@")
    assert Tracker(uri, storage, "demo").experiment == "demo"
    assert not (tmp_path / "copy-of-a-store" / "storage.json").exists()


def test_a_server_that_goes_away_during_a_sweep_is_caught_up_later(
    storage: Path, server: tuple[str, Callable[[], None]]
) -> None:
    from cryobench.orchestrator.sweep_record import read_sweep

    uri, end = server
    record = read_sweep(storage, "demo")
    warnings: list[str] = []
    reconciler = BackgroundReconciler(storage, record, uri, warnings.append, interval_s=60)
    end()
    reconciler.note(record.trials)
    assert reconciler.close() is False
    assert ["cryobench sync" in text for text in warnings] == [False, True]  # the first: whose the experiment is
    assert read_leaderboard(storage).num_rows == 2


def test_sql_over_the_leaderboard(storage: Path) -> None:
    sync(storage, None)
    table = read_leaderboard(storage)
    found = run_sql(table, "select encoder, count(*) as trials from leaderboard group by 1")
    assert found.to_pylist() == [{"encoder": "unet_small", "trials": 2}]
    with pytest.raises(ConfigError, match=r"(?s)The query cannot be run: .*with the columns trial_id, sweep"):
        run_sql(table, "select nothing from leaderboard")
    with pytest.raises(ConfigError, match="cannot be run"):
        run_sql(table, f"select * from read_csv('{storage}/sweeps/demo.json')")


def test_selecting_rows(storage: Path) -> None:
    sync(storage, None)
    table = read_leaderboard(storage)
    assert keep(table, storage, "demo", "frozen").num_rows == 1
    with pytest.raises(UnknownNameError, match="Unknown sweep on this storage 'demmo'. Did you mean 'demo'"):
        keep(table, storage, "demmo", None)
    with pytest.raises(UnknownNameError, match="Known: finetune, frozen"):
        keep(table, storage, None, "few_shot")


def test_no_or_a_damaged_leaderboard_is_explained(storage: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No leaderboard at .*cryobench sync rebuilds it"):
        read_leaderboard(tmp_path)
    sync(storage, None)
    table_path(storage).write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="cannot be read .*cryobench sync rebuilds it"):
        read_leaderboard(storage)


def test_result_files_are_plain_json(storage: Path) -> None:
    for path in (storage / "trials").glob("*/result.json"):
        assert json.loads(path.read_text())["status"] == "completed"
