"""``plan --smoke``: one step of every pair, on Ray."""

import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from cryobench.conf.compose import load_sweep
from cryobench.orchestrator.cli import app
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.orchestrator.sweep.smoke_run import representatives

PAIRS = (
    "sweep=demo",
    "encoders=[s12_moco_small]",
    "datasets=[glid,caffe]",
    "lr_search=null",
    "protocol.crops_per_tile=2",
)


def test_each_pair_is_tried_by_the_trial_that_trains_most(where: Places) -> None:
    plan = make_plan(load_sweep([*PAIRS, "encoders=[unet_small,s12_moco_small]", "regimes=[frozen,finetune]"]), where)
    chosen = [(s.dataset.name, s.encoder.name, s.trains_encoder) for s in representatives(plan.trials)]
    assert sorted(chosen) == sorted(
        (dataset, encoder, True) for dataset in ("glid", "caffe") for encoder in ("unet_small", "s12_moco_small")
    )


def test_a_pair_that_fails_is_reported_and_the_storage_stays_empty(
    data_dir: Path, tmp_path: Path, shared_ray: None
) -> None:
    for name in ("glid", "caffe"):
        shutil.copytree(data_dir / f"{name}.zarr", tmp_path / "data" / f"{name}.zarr")
    chunk = tmp_path / "data" / "caffe.zarr" / "train" / "sar" / "c" / "4" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    storage = tmp_path / "storage"
    places = ["--storage", str(storage), "--data-dir", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "cache")]
    done = CliRunner().invoke(app, ["plan", *PAIRS, "--smoke", "--json", *places])
    assert done.exit_code == 1, done.output
    reports = {report["dataset"]: report for report in json.loads(done.output)["smoke"]}
    assert reports["glid"]["ok"]
    assert reports["glid"]["found"]["peak_memory_mb"] > 10
    assert (reports["caffe"]["ok"], reports["caffe"]["kind"]) == (False, "corrupt_data")
    assert "tile 4 of train/sar" in reports["caffe"]["message"]
    assert not storage.exists()
