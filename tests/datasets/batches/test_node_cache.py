import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from cryobench.conf.errors import CorruptDataError, DiskFullError
from cryobench.datasets.batches import node_cache
from cryobench.datasets.batches.node_cache import StoredTiles, decoded_bytes, open_tiles
from cryobench.datasets.batches.tile_source import CachedTiles
from cryobench.datasets.store.tile_store import TileStore

LIMIT = 10**9


def test_cached_tiles_equal_the_store(glid_store: TileStore, tmp_path: Path) -> None:
    tiles = open_tiles(glid_store, tmp_path, LIMIT)("train")
    assert isinstance(tiles, CachedTiles)
    assert len(tiles) == 8
    assert tiles.shape("optical") == (3, 64, 64)
    for i in range(8):
        expected = glid_store.tile("train", "optical", i)[:, 5:25, 7:40]
        assert np.array_equal(tiles.crop("optical", i, 5, 7, 20, 33), expected)
        assert np.array_equal(tiles.crop("mask", i, 0, 0, 64, 64), glid_store.tile("train", "mask", i))


def test_a_store_beyond_the_limit_is_read_directly_with_the_same_values(glid_store: TileStore, tmp_path: Path) -> None:
    tiles = open_tiles(glid_store, tmp_path, decoded_bytes(glid_store) - 1)("train")
    assert isinstance(tiles, StoredTiles)
    assert not list(tmp_path.iterdir())
    cached = open_tiles(glid_store, tmp_path, LIMIT)("train")
    for name in ("optical", "mask"):
        assert np.array_equal(tiles.crop(name, 3, 1, 2, 30, 20), cached.crop(name, 3, 1, 2, 30, 20))


def test_a_store_beyond_the_limit_is_said_to_be(glid_store: TileStore, tmp_path: Path) -> None:
    told: list[str] = []
    open_tiles(glid_store, tmp_path, 1000, tell=told.append)
    (text,) = told
    assert "GB decoded, the node cache 0.00 GB" in text
    assert "Raise resources.cache_limit_gb" in text
    open_tiles(glid_store, tmp_path, LIMIT, tell=told.append)
    assert len(told) == 1


def test_eight_at_once_decode_once(glid_store: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    real = node_cache._decode
    monkeypatch.setattr(node_cache, "_decode", lambda *a: (decoded.append(a[1]), real(*a)))
    threads = [threading.Thread(target=open_tiles, args=(glid_store, tmp_path, LIMIT)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1


def test_the_longest_unused_store_makes_room(glid_store: TileStore, data_dir: Path, tmp_path: Path) -> None:
    first = open_tiles(glid_store, tmp_path, LIMIT)("test")
    before = first.crop("mask", 0, 0, 0, 64, 64).copy()
    for marker in tmp_path.glob("*/complete.json"):
        os.utime(marker, (1, 1))
    other = TileStore(data_dir / "caffe.zarr")
    open_tiles(other, tmp_path, max(decoded_bytes(other), decoded_bytes(glid_store)))
    kept = [p.parent.name for p in tmp_path.glob("*/complete.json")]
    assert kept == [other.info.digest[:24]]
    assert np.array_equal(first.crop("mask", 0, 0, 0, 64, 64), before)  # mapped files outlive their names


def test_an_interrupted_build_is_never_taken_for_whole(glid_store: TileStore, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_tiles(glid_store, tmp_path, LIMIT, progress=stop)
    tiles = open_tiles(glid_store, tmp_path, LIMIT)("train")
    assert np.array_equal(tiles.crop("mask", 7, 0, 0, 64, 64), glid_store.tile("train", "mask", 7))


def test_a_corrupt_chunk_names_tile_and_array(glid_store: TileStore, tmp_path: Path) -> None:
    shutil.copytree(glid_store.path, tmp_path / "glid.zarr")
    chunk = tmp_path / "glid.zarr" / "val" / "optical" / "c" / "1" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(CorruptDataError, match=r"tile 1 of val/optical \(val/images/0001.tif\).*Prepare the data set"):
        open_tiles(TileStore(tmp_path / "glid.zarr"), tmp_path / "cache", LIMIT)


def test_a_full_disk_leaves_nothing_half_built(
    glid_store: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFullError, match=r"No space left while writing .*Free some space"):
        open_tiles(glid_store, tmp_path, LIMIT)
    assert [p.name for p in tmp_path.iterdir()] == ["cache.lock"]
