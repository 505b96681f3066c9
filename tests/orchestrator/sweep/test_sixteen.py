"""All sixteen systems on generated optical and radar tiles, in full size, with random weights."""

import subprocess
import sys
from pathlib import Path

import pytest

from cryobench.orchestrator.results.leaderboard import read_leaderboard

ENTRY = "from cryobench.orchestrator.cli import main; main()"


@pytest.mark.slow
def test_a_sweep_over_all_sixteen_completes(tmp_path: Path) -> None:
    def cryobench(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", ENTRY, *arguments],
            capture_output=True,
            text=True,
            timeout=2400,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    for name in ("glid", "caffe"):
        cryobench("data", "synth", name, "--tiles", "4", "1", "1", "--size", "128")
    overrides = ["sweep=paper_frozen", "datasets=[glid,caffe]", "protocol=small", "weights=random"]
    overrides += ["protocol.epochs=1", "protocol.batch_size=2", "protocol.crops_per_tile=1"]
    cryobench("sweep", *overrides)
    rows = read_leaderboard(tmp_path / "cryobench-storage").to_pylist()
    assert len(rows) == 32
    assert {row["status"] for row in rows} == {"completed"}
    assert len({row["encoder"] for row in rows}) == 16
    for row in rows:
        assert row["weights"] == ("scratch" if row["encoder"] in ("unet", "vit") else "random")
        assert row["trained_parameters"] < row["parameters"] or row["weights"] == "scratch"
