"""The benchmarks run; what they measure is their own business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_loader_benchmark_gives_its_ratios() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "loader.py"), "--tiles", "16", "--seconds", "0.3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    assert set(found["ratio_to_reference"]) == {"gsdd", "glid", "caffe"}
    assert all(ratio > 0 for ratio in found["ratio_to_memory_copy"].values())


WITHOUT = ("pydantic", "ray", "mlflow", "rasterio", "zarr", "numcodecs", "pyarrow", "safetensors", "hydra", "omegaconf")


@pytest.mark.slow
def test_the_training_step_benchmark_needs_only_torch_timm_and_numpy() -> None:
    arguments = ["--models", "vit_small", "--steps", "1", "--batch", "2", "--channels", "16", "--tiles", "2", "--json"]
    script = "import sys, runpy\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in WITHOUT)
    path = str(ROOT / "benchmarks" / "train_step.py")
    script += f"sys.argv = {['train_step.py', *arguments, '--curves', '--epochs', '1']!r}\n"
    script += f"runpy.run_path({path!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)["models"]["vit_small"]
    assert set(found["ratio_to_reference"]) == {"ours_fp32", "ours_bf16"}
    assert all(values["tiles_a_second"] > 0 for way, values in found.items() if way.startswith(("ours", "ref")))
    assert len(found["validation_accuracy"]["reference"]) == 1


@pytest.mark.slow
def test_the_trial_benchmark_splits_its_time() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "trial.py"), "--epochs", "2", "--tiles", "8", "2", "2"]
    done = subprocess.run([*command, "--channels", "16", "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["seconds"]["ours"]) == {"start", "data", "training", "evaluation", "checkpointing"}
    assert 0 < found["outside_training_and_evaluation"] < found["outside_training"] < 1


@pytest.mark.slow
def test_the_orchestration_benchmark_says_what_a_trial_costs_each_way() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "orchestration.py"), "--trials", "2,4", "--epochs", "3"]
    command += ["--only", "sqlite,ray_actors,processes", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ours"].keys() == found["growth"].keys() == found["driver"].keys() == {"sqlite"}
    assert all(ms > 0 for by_count in found["ours"].values() for ms in by_count.values())
    assert found["ours"]["sqlite"].keys() == found["ray_actors"].keys() == {"2", "4"}
    assert found["processes"].keys() == {"2"}
    assert found["driver"]["sqlite"]["driver_memory_mb"]["4"] > 0
