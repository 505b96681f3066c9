"""The readers on small real satellite tiles."""

from pathlib import Path

import numpy as np
import pytest

from cryobench.conf.compose import load_dataset
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.store.verify import verify


@pytest.mark.parametrize(
    ("name", "tiles", "groups"),
    [
        ("debris", (6, 1, 2), {"optical": 5, "ancillary": 3, "sar": 1}),
        ("front", (36, 8, 5), {"optical": 1}),
        ("caffe", (7, 2, 2), {"sar": 1}),
    ],
)
def test_real_tiles_convert(
    shared_data: Path, tmp_path: Path, name: str, tiles: tuple[int, ...], groups: dict[str, int]
) -> None:
    info = convert(load_dataset(name), shared_data / name, tmp_path / f"{name}.zarr")
    assert tuple(split.tiles for split in info.splits.values()) == tiles
    assert {group: len(found.bands) for group, found in info.groups.items()} == groups
    assert verify(TileStore(tmp_path / f"{name}.zarr")) == []


def test_real_debris_is_as_described(shared_data: Path, tmp_path: Path) -> None:
    convert(load_dataset("debris"), shared_data / "debris", tmp_path / "debris.zarr")
    store = TileStore(tmp_path / "debris.zarr")
    assert {record.crs for record in store.records("train")} == {"EPSG:32643", "EPSG:32645"}
    shares = np.concatenate([store.class_pixels(s) for s in ("train", "val", "test")])[:, 1] / 250_000
    assert 0.016 < shares.min() < 0.018
    assert 0.28 < shares.max() < 0.30
