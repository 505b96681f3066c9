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
