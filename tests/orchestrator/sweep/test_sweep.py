"""Whole sweeps through the command line: a real Ray, a real SQLite MLflow."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sweeping import SMALL, Command, kill_driver, kill_worker
from typer.testing import CliRunner

from cryobench.orchestrator.cli import app
from cryobench.orchestrator.results.leaderboard import read_leaderboard
from cryobench.orchestrator.sweep_record import read_sweep
from cryobench.workers.record.folder import all_trials


def test_a_sweep_completes_and_says_where_things_are(undisturbed: Command) -> None:
    table = read_leaderboard(undisturbed.storage)
    assert table.num_rows == 4
    assert set(table["status"].to_pylist()) == {"completed"}
    assert len(undisturbed.finished()) == 4
    assert (undisturbed.storage / "mlflow.db").exists()


def test_a_sweep_leaves_a_log_and_shows_its_state(undisturbed: Command) -> None:
    from cryobench.orchestrator.sweep.sweep_log import logs_folder

    path = next(logs_folder(undisturbed.storage, "demo").iterdir())  # of the first driver
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ids = {folder.trial_id for folder in undisturbed.finished()}
    for event in ("started", "ended"):
        assert sorted(line["trial"] for line in lines if line["event"] == event) == sorted(ids)
    assert [line["counts"]["completed"] for line in lines if line["event"] == "driver_ended"] == [4]
    assert all(line["node"] for line in lines if line["event"] == "started")
    done = CliRunner().invoke(app, ["status", "demo", "--storage", str(undisturbed.storage)])
    assert "4 of 4 trials done" in done.output


def test_running_it_again_runs_nothing(undisturbed: Command) -> None:
    before = {f.trial_id: len(f.events()) for f in undisturbed.finished()}
    told = undisturbed.run_here()
    assert "4 trials, 4 complete, 0 to run" in told
    assert {f.trial_id: len(f.events()) for f in undisturbed.finished()} == before


def test_failed_trials_are_reported_and_wait_for_retry_failed(undisturbed: Command, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.data_dir / "glid.zarr", tmp_path / "data" / "glid.zarr")
    chunk = tmp_path / "data" / "glid.zarr" / "test" / "mask" / "c" / "0" / "0" / "0"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-4])
    command = Command(tmp_path / "storage", tmp_path / "data", (*SMALL, "encoders=[unet_small]", "regimes=[frozen]"))
    told = command.run_here(expect=1)
    assert "failed" in told
    assert "tile 0 of test/mask" in told
    assert "--retry-failed" in told
    chunk.write_bytes(good)
    told = command.run_here(expect=1)
    assert "0 to run" in told
    assert "1 failed before for reasons of their own and are not run without --retry-failed" in told
    assert "1 trial failed (corrupt_data: stored tiles that are not what was written)" in told
    assert "1 completed" in command.run_here("--retry-failed")
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
    assert "Cannot reach a Ray cluster at 127.0.0.1:9" in done.stderr


def test_more_than_the_machine_has_is_explained(undisturbed: Command, tmp_path: Path) -> None:
    command = Command(tmp_path / "storage", undisturbed.data_dir, (*SMALL, "resources.cpus_per_trial=1000"))
    done = subprocess.run(
        command.arguments(*command.overrides), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 2
    assert "A trial asks for 1000 CPU and 0 GPU and must fit on one node; the largest of 1," in done.stderr


def test_a_plan_of_a_finished_sweep_shows_it(undisturbed: Command) -> None:
    arguments = undisturbed.arguments(*SMALL, "--json", name=("plan",))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["counts"]["state"] == {"completed": 4}


def test_a_corrupt_tile_ends_its_trials_alone(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir / "glid.zarr", tmp_path / "data" / "glid.zarr")
    shutil.copytree(data_dir / "caffe.zarr", tmp_path / "data" / "caffe.zarr")
    chunk = tmp_path / "data" / "caffe.zarr" / "train" / "sar" / "c" / "4" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    overrides = (*SMALL[:2], "datasets=[caffe,glid]", "regimes=[finetune]", "lr_search=null", "protocol.epochs=2")
    command = Command(tmp_path / "storage", tmp_path / "data", (*overrides, "protocol.bootstrap_samples=100"))
    told = command.run_here(expect=1)
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
    whole = Command(tmp_path / "whole" / "storage", demo_data, ("sweep=demo",))
    assert "24 completed" in whole.run()
    kill_driver(Command(tmp_path / "driver" / "storage", demo_data, ("sweep=demo",)), whole.storage, at_epochs=90)
    kill_worker(Command(tmp_path / "worker" / "storage", demo_data, ("sweep=demo",)), whole.storage, at_epochs=60)


def test_a_trial_that_an_interrupted_sweep_listed_is_written_by_the_sweep_that_finishes_it(
    data_dir: Path, tmp_path: Path, shared_ray: None
) -> None:
    """`paper_frozen` recorded and stopped, then `full`: 0 of 2 rows were written."""
    from cryobench.conf.compose import load_sweep
    from cryobench.orchestrator.places import Places
    from cryobench.orchestrator.sweep.plan import make_plan
    from cryobench.orchestrator.sweep_record import record_sweep

    overrides = (*SMALL, "encoders=[unet_small]", "protocol.epochs=1")
    command = Command(tmp_path / "storage", data_dir, (*overrides, "name=later"))
    where = Places(command.storage, data_dir, tmp_path / "cache", tmp_path / "weights")
    plan = make_plan(load_sweep([*overrides, "name=earlier"]), where)
    record_sweep(where.storage, plan.sweep, plan.trial_ids)
    told = command.run_here()
    assert "MLflow lacks" not in told
    rows = read_leaderboard(command.storage).to_pylist()
    assert [row["sweep"] for row in rows] == ["earlier", "earlier"]
    assert None not in {row["mlflow_run_id"] for row in rows}
    assert read_sweep(command.storage, "later").trials == read_sweep(command.storage, "earlier").trials
