"""Generated scenes: reproducible, and learnable but not by a threshold."""

from pathlib import Path

import numpy as np
import pytest

from cryobench.conf.compose import load_dataset, load_sweep
from cryobench.conf.errors import DataError, UnknownNameError
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.synth.generate import RECIPES, fitted, generate
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.workers.place import Place
from cryobench.workers.training.metrics import metrics
from cryobench.workers.trial import run_trial


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*"))}


@pytest.mark.parametrize("name", ["glid", "caffe"])
def test_the_same_seed_gives_the_same_files(tmp_path: Path, name: str) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(name, tmp_path / folder, tiles=(2, 1, 1), size=48, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_real_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="holds files that were not generated"):
        generate("glid", tmp_path)


def test_unknown_names_and_sizes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Known: caffe, gld, glid, gsdd, sicd"):
        generate("gild", tmp_path / "x")
    with pytest.raises(DataError, match="at least 32"):
        generate("glid", tmp_path / "x", size=8)


def best_threshold_miou(store: TileStore) -> float:
    """The best that thresholds on one band can do on the test split, chosen on the test split itself.

    Each of 256 levels of a band may be given any class: the upper bound of every band-wise rule.
    """
    classes = len(store.info.classes)
    count = store.info.splits["test"].tiles
    mask = np.concatenate([store.tile("test", "mask", i).ravel() for i in range(count)])
    bands = [(group, i) for group, info in store.info.groups.items() for i in range(len(info.bands))]
    best = 0.0
    for group, band in bands:
        values = np.concatenate([store.tile("test", group, i)[band].ravel() for i in range(count)])
        levels = np.searchsorted(np.percentile(values, np.linspace(0, 100, 255)), values)
        joint = np.zeros((256, classes), np.int64)
        np.add.at(joint, (levels[mask != 255], mask[mask != 255]), 1)
        weights = joint / np.maximum(joint.sum(axis=0), 1)
        for choice in (joint.argmax(axis=1), weights.argmax(axis=1)):
            matrix = np.zeros((classes, classes), np.int64)
            for level, chosen in enumerate(choice):
                matrix[chosen] += joint[level]
            best = max(best, metrics(matrix).miou)
    return best


@pytest.mark.parametrize(
    ("name", "tiles", "epochs", "margin"),
    [
        ("glid", 16, 4, 30.0),
        pytest.param("caffe", 24, 16, 12.0, marks=pytest.mark.slow),
        pytest.param("gld", 24, 12, 5.0, marks=pytest.mark.slow),
        pytest.param("gsdd", 24, 12, 5.0, marks=pytest.mark.slow),
        pytest.param("sicd", 24, 16, 5.0, marks=pytest.mark.slow),
    ],
)
def test_a_small_unet_does_clearly_better_than_a_threshold(
    tmp_path: Path, name: str, tiles: int, epochs: int, margin: float
) -> None:
    generate(name, tmp_path / "raw", tiles=(tiles, 4, 8), size=128)
    convert(fitted(load_dataset(name), 128), tmp_path / "raw", tmp_path / f"{name}.zarr")
    where = Places(tmp_path / "storage", tmp_path, tmp_path / "cache", tmp_path / "weights")
    overrides = ["encoder=unet_small", f"dataset={name}", "regime=finetune", "lr=3e-3", "lr_search=null"]
    (trial,) = make_plan(load_sweep([*overrides, f"protocol.epochs={epochs}", "protocol.eval_every=4"]), where).trials
    place = Place(where.storage, where.data_dir, where.cache_dir, device="cpu")
    result = run_trial(trial.spec, place)
    assert result.test is not None
    threshold = best_threshold_miou(TileStore(tmp_path / f"{name}.zarr"))
    assert result.test.miou > threshold + margin, f"U-Net {result.test.miou:.1f}, threshold {threshold:.1f}"


def test_all_five_make_a_benchmark_on_which_everything_is_ready(tmp_path: Path) -> None:
    for name in RECIPES:
        generate(name, tmp_path / "raw" / name, tiles=(4, 4, 4), size=48)
        convert(fitted(load_dataset(name), 48), tmp_path / "raw" / name, tmp_path / f"{name}.zarr")
    where = Places(tmp_path / "storage", tmp_path, tmp_path / "cache", tmp_path / "weights")
    plan = make_plan(load_sweep(["sweep=full", "weights=random"]), where)
    assert len(plan.trials) == 368
    assert {trial.state for trial in plan.trials} == {"pending"}
    waiting = make_plan(load_sweep(["sweep=full"]), where)
    assert {trial.state for trial in waiting.trials} == {"pending", "missing_weights"}
