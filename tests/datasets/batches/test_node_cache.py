import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cryobench.conf.errors import CorruptDataError, DiskFullError
from cryobench.datasets.batches import cache_check, node_cache
from cryobench.datasets.batches.node_cache import Neighbour, StoredTiles, decoded_bytes, open_tiles
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


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def other_shape(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def other_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[128::997] = bytes(byte ^ 1 for byte in content[128::997])
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "No such file"),
        (truncate, "train-optical.npy cannot be read .*expected uint8"),
        (lambda path: path.write_bytes(b""), "train-optical.npy cannot be read"),
        (lambda path: path.write_bytes(b"no array at all"), "train-optical.npy cannot be read"),
        (other_shape, r"train-optical.npy holds uint8 \(7, 3, 64, 64\), expected uint8 \(8, 3, 64, 64\)"),
        (longer, r"train-optical.npy has [\d,]+ bytes, expected"),
        (other_bits, r"tile 0 of train-optical.npy is not what was written there"),
        (lambda path: (path.parent / "complete.json").unlink(), "complete.json is missing"),
    ],
)
def test_a_damaged_entry_is_built_again_and_said_once(
    glid_store: TileStore, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    open_tiles(glid_store, tmp_path, LIMIT)
    damage(tmp_path / glid_store.info.digest[:24] / "train-optical.npy")
    told: list[str] = []
    for _ in range(2):
        tiles = open_tiles(glid_store, tmp_path, LIMIT, tell=told.append)("train")
        assert np.array_equal(tiles.crop("optical", 7, 0, 0, 64, 64), glid_store.tile("train", "optical", 7))
    (text,) = told
    assert re.search(f"entry .* is damaged: .*{said}.*It is built again from", text)
    assert {path.name for path in tmp_path.iterdir()} == {glid_store.info.digest[:24], "cache.lock"}


def test_a_corrupt_chunk_and_a_killed_build_leave_nothing_behind(glid_store: TileStore, tmp_path: Path) -> None:
    shutil.copytree(glid_store.path, tmp_path / "glid.zarr")
    (tmp_path / "glid.zarr" / "val" / "optical" / "c" / "1" / "0" / "0" / "0").write_bytes(b"")
    cache = tmp_path / "cache"
    (cache / "0123.building").mkdir(parents=True)  # another store's, of a process that was killed
    (cache / "4567.removing").mkdir()
    with pytest.raises(CorruptDataError):
        open_tiles(TileStore(tmp_path / "glid.zarr"), cache, LIMIT)
    assert [path.name for path in cache.iterdir()] == ["cache.lock"]


def test_an_entry_that_makes_room_is_found_whole_or_not_at_all(
    glid_store: TileStore, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_tiles(glid_store, tmp_path, LIMIT)
    found: list[list[str]] = []
    real = shutil.rmtree

    def watched(path: Path) -> None:
        found.append([p.parent.name for p in tmp_path.glob("*/complete.json") if not p.parent.suffix])
        real(path)

    monkeypatch.setattr(shutil, "rmtree", watched)
    open_tiles(TileStore(data_dir / "caffe.zarr"), tmp_path, decoded_bytes(TileStore(data_dir / "caffe.zarr")))
    assert found == [[]]


PINGPONG = """
import sys
import numpy as np
from collections.abc import Callable
from pathlib import Path
from cryobench.datasets.batches.node_cache import decoded_bytes, open_tiles
from cryobench.datasets.store.tile_store import (TileStore)

stores = [TileStore(Path(path)) for path in sys.argv[2:]]
limit = max(decoded_bytes(store) for store in stores)  # for one of them at a time
for _ in range(10):
    for store in stores:
        tiles = open_tiles(store, Path(sys.argv[1]), limit, tell=print)("train")
        assert np.array_equal(tiles.crop("mask", 7, 0, 0, 64, 64), store.tile("train", "mask", 7))
"""


def test_processes_that_evict_each_others_stores_read_the_right_tiles(data_dir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    open_tiles(TileStore(data_dir / "glid.zarr"), cache, LIMIT)
    truncate(next(cache.glob("*/train-mask.npy")))
    paths = [str(data_dir / "glid.zarr"), str(data_dir / "caffe.zarr")]
    running = [
        subprocess.Popen([sys.executable, "-c", PINGPONG, str(cache), *order], stdout=subprocess.PIPE, text=True)
        for order in (paths, paths[::-1])
    ]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert "".join(said).count("damaged") <= 1  # none where the other process evicted the damaged entry first
    assert {path.suffix for path in cache.iterdir()} == {"", ".lock"}


def neighbour(folder: Path, count: int, used: float, may_go: bool = True) -> Neighbour:
    folder.mkdir(exist_ok=True)
    (folder / "file").write_bytes(b"x" * count)
    return Neighbour(folder, count, used, lambda: may_go)


def test_what_else_lies_there_counts_and_goes_first(glid_store: TileStore, data_dir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    entry = cache / glid_store.info.digest[:24]
    open_tiles(glid_store, cache, LIMIT)
    size = sum(path.stat().st_size for path in entry.iterdir())
    others = [neighbour(tmp_path / name, 1000, used) for name, used in (("old", 1.0), ("new", 3.0))]
    others.append(neighbour(tmp_path / "running", 1000, 2.0, may_go=False))
    open_tiles(glid_store, cache, size + 3000, neighbours=lambda: others)
    assert all(other.folder.exists() for other in others)
    open_tiles(glid_store, cache, size + 2000, neighbours=lambda: others)
    assert [other.folder.exists() for other in others] == [False, True, True]
    assert entry.exists()  # what is opened again needs no room
    other_store = TileStore(data_dir / "caffe.zarr")
    open_tiles(other_store, cache, decoded_bytes(other_store) + size + 500, neighbours=lambda: others)
    assert [other.folder.exists() for other in others] == [False, False, True]
    assert not entry.exists()  # what runs stays, so the store had to make room


def test_an_entry_is_checked_once_a_process_and_after_every_change(
    glid_store: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    real = cache_check.tile_check
    monkeypatch.setattr(cache_check, "tile_check", lambda array: (checked.append(array.nbytes), real(array))[1])
    open_tiles(glid_store, tmp_path, LIMIT)
    everything = sum(checked)
    assert everything == decoded_bytes(glid_store)
    open_tiles(glid_store, tmp_path, LIMIT)
    assert sum(checked) == everything
    path = tmp_path / glid_store.info.digest[:24] / "test-mask.npy"
    os.utime(path, (1, 1))
    open_tiles(glid_store, tmp_path, LIMIT)
    assert sum(checked) - everything == glid_store.info.splits["test"].tiles * 64 * 64


def test_another_process_checks_for_itself(glid_store: TileStore, tmp_path: Path) -> None:
    """What an earlier process found whole may have changed since, with size and time as they were."""
    open_tiles(glid_store, tmp_path, LIMIT)
    path = tmp_path / glid_store.info.digest[:24] / "train-optical.npy"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    script = (
        "import sys; from pathlib import Path\n"
        "from cryobench.datasets.batches.node_cache import open_tiles\n"
        "from cryobench.datasets.store.tile_store import TileStore\n"
        "open_tiles(TileStore(Path(sys.argv[1])), Path(sys.argv[2]), 10**9, tell=print)"
    )
    command = [sys.executable, "-c", script, str(glid_store.path), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "tile 7 of train-optical.npy is not what was written there. It is built again" in told
