import threading

import numpy as np
import pytest
import torch

from cryobench.conf.errors import ConfigError, HungReadError
from cryobench.datasets.batches.batch_loader import BatchLoader, EpochSampler, crop_size
from cryobench.datasets.batches.node_cache import StoredTiles
from cryobench.datasets.store.tile_store import TileStore


def sampler(**changes: object) -> EpochSampler:
    settings = {
        "tiles": np.arange(10),
        "tile_shape": (64, 48),
        "crop": (32, 32),
        "batch_size": 4,
        "crops_per_tile": 1,
        "seed": 234,
    }
    return EpochSampler(**(settings | changes))  # type: ignore[arg-type]


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    assert sampler().epoch(3) == sampler().epoch(3)
    assert sampler().epoch(3) != sampler().epoch(4)
    assert sampler().epoch(3) != sampler(seed=1).epoch(3)


def test_incomplete_batches_are_dropped() -> None:
    assert len(sampler()) == 2
    assert [len(batch) for batch in sampler().epoch(1)] == [4, 4]
    assert len(sampler(crops_per_tile=2)) == 5


def test_every_tile_is_visited_as_often_as_asked() -> None:
    crops = [c for batch in sampler(crops_per_tile=2).epoch(1) for c in batch]
    assert sorted(c.tile for c in crops) == sorted([*range(10), *range(10)])


def test_crops_stay_inside_and_reach_every_border() -> None:
    crops = [c for e in range(200) for batch in sampler().epoch(e) for c in batch]
    assert {c.top for c in crops} == set(range(33))
    assert {c.left for c in crops} == set(range(17))


def test_fewer_tiles_than_a_batch_is_explained() -> None:
    with pytest.raises(ConfigError, match="fewer than one batch of 4.*Lower protocol.batch_size"):
        sampler(tiles=np.arange(3))


def test_crop_size_is_the_encoders_input_or_the_tile() -> None:
    assert crop_size((500, 500), 224) == (224, 224)
    assert crop_size((300, 200), 224) == (224, 200)
    assert crop_size((300, 200), "tile") == (300, 200)


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_hold_the_crops_whatever_the_threads(glid_store: TileStore, threads: int) -> None:
    source = StoredTiles(glid_store, "train")
    plan = sampler(tiles=np.arange(8), tile_shape=(64, 64)).epoch(1)
    with BatchLoader(source, ("optical",), threads=threads, ahead=2, pin=False) as loader:
        for crops, batch in zip(plan, loader.load(plan), strict=True):
            assert batch.groups["optical"].dtype == torch.uint8
            assert batch.groups["optical"].shape == (4, 3, 32, 32)
            for i, c in enumerate(crops):
                expected = glid_store.tile("train", "optical", c.tile)[:, c.top : c.top + 32, c.left : c.left + 32]
                assert np.array_equal(batch.groups["optical"][i].numpy(), expected)


class Hanging:
    """Tiles on a file server that went away."""

    names = ("optical", "mask")

    def __init__(self) -> None:
        self.back = threading.Event()

    def __len__(self) -> int:
        return 10

    def shape(self, name: str) -> tuple[int, ...]:
        return (64, 48) if name == "mask" else (3, 64, 48)

    def dtype(self, name: str) -> np.dtype[np.uint8]:
        return np.dtype(np.uint8)

    def crop(self, name: str, index: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        self.back.wait(30)
        return np.zeros((*self.shape(name)[:-2], height, width), np.uint8)


def test_a_read_that_hangs_is_noticed() -> None:
    source = Hanging()
    with BatchLoader(source, ("optical",), threads=1, ahead=1, pin=False, stall_s=0.2) as loader:
        with pytest.raises(HungReadError, match=r"did not come back within 0\.2 s.*continues from its last checkpoint"):
            next(loader.load(sampler().epoch(1)))
        source.back.set()
