"""A trial's own memory does not grow with the data set: its tiles are the kernel's pages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cryobench.conf.compose import load_dataset, load_sweep
from cryobench.datasets.batches.node_cache import decoded_bytes
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.synth.generate import fitted, generate
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.plan import make_plan

SCRIPT = """
import sys
from pathlib import Path
from cryobench.workers.record.folder import read_spec
from cryobench.workers.place import Place
from cryobench.workers.trial import run_trial
folder = Path(sys.argv[1])
print(run_trial(read_spec(folder / "spec.json"), Place(folder / "storage", folder, folder / "cache", device="cpu"))
      .cost.peak_memory_mb)
"""


def peak_memory_mb(folder: Path, tiles: int) -> tuple[float, float]:
    """Of a trial in a process of its own, and the size of its data, both in MB."""
    generate("gsdd", folder / "raw", tiles=(tiles, 2, 2), size=128)
    convert(fitted(load_dataset("gsdd"), 128), folder / "raw", folder / "gsdd.zarr")
    where = Places(folder / "storage", folder, folder / "cache", folder / "weights")
    asked = ["encoder=vit_small_demo", "dataset=gsdd", "regime=frozen", "lr=1e-3", "lr_search=null"]
    asked += ["protocol.epochs=1", f"protocol.crops_per_tile={240 // tiles}"]  # as many steps on little as on much
    (trial,) = make_plan(load_sweep(["sweep=demo", *asked]), where).trials
    (folder / "spec.json").write_text(json.dumps(trial.spec.model_dump(mode="json")))
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return float(done.stdout), decoded_bytes(TileStore(folder / "gsdd.zarr")) / 1e6


@pytest.mark.slow
def test_it_is_the_same_for_thirty_times_the_data(tmp_path: Path) -> None:
    """What threads happen to hold at the same time differs by some 40 MB from run to run."""
    little, little_data = peak_memory_mb(tmp_path / "little", 8)
    much, much_data = peak_memory_mb(tmp_path / "much", 240)
    assert much_data - little_data > 150
    assert much - little < 75
