"""The node cache: a store decoded once a node into memory-mapped arrays that all trials there read.

Keyed by the store's digest, built under a lock, bounded in size: the stores that were used longest ago make room.
A store that does not fit at all is read chunk by chunk instead (`StoredTiles`), slower and said so.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cryobench.conf.errors import disk_full
from cryobench.conf.terms import Split
from cryobench.datasets.batches.tile_source import CachedTiles, TileSource
from cryobench.datasets.store.tile_store import TileStore

_COMPLETE = "complete.json"
Progress = Callable[[int, int], None]


class StoredTiles:
    """One split straight from the store: a chunk is read and checked for every crop."""

    def __init__(self, store: TileStore, split: Split) -> None:
        self.names = store.arrays
        self._store, self._split = store, split

    def __len__(self) -> int:
        return self._store.info.splits[self._split].tiles

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tile."""
        return self._store.shape(self._split, name)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Dtype of the tiles."""
        return self._store.dtype(name)

    def crop(self, name: str, index: int, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """The window, cut from the whole decoded chunk."""
        return self._store.tile(self._split, name, index)[..., top : top + height, left : left + width]


def decoded_bytes(store: TileStore) -> int:
    """Size of the store's arrays without compression."""
    total = 0
    for info in store.info.splits.values():
        pixels = info.tiles * info.height * info.width
        per_pixel = 1 + sum(np.dtype(g.dtype).itemsize * len(g.bands) for g in store.info.groups.values())
        total += pixels * per_pixel
    return total


def open_tiles(
    store: TileStore,
    cache_dir: Path,
    limit_bytes: int,
    *,
    threads: int = 2,
    progress: Progress = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Callable[[Split], TileSource]:
    """A function from split to its tiles, from the node cache where the store fits into it.

    Whoever comes first decodes, in threads and checking every tile; the others wait for the lock and read. ``tell``
    is told if the store is too large for the cache and so is read chunk by chunk.

    Raises:
        CorruptDataError: a chunk is not what was written; names tile and array.
        DiskFullError: no space left in ``cache_dir``; nothing half-built stays.
    """
    needed = decoded_bytes(store)
    if needed > limit_bytes:
        tell(
            f"{store.path} has {needed / 1e9:.2f} GB decoded, the node cache {limit_bytes / 1e9:.2f} GB: its chunks "
            "are read and decoded for every batch, ahead of use. Raise resources.cache_limit_gb to make this faster."
        )
        return lambda split: StoredTiles(store, split)
    folder = cache_dir / store.info.digest[:24]
    cache_dir.mkdir(parents=True, exist_ok=True)
    while True:
        if not (folder / _COMPLETE).exists():
            with FileLock(cache_dir / "cache.lock"):
                if not (folder / _COMPLETE).exists():
                    _make_room(cache_dir, limit_bytes - needed)
                    _decode(store, folder, threads, progress)
        try:
            os.utime(folder / _COMPLETE)
            return {split: CachedTiles(folder, split, store.arrays) for split in store.info.splits}.__getitem__
        except FileNotFoundError:
            continue  # another store took its place in this very moment: build it again


def _decode(store: TileStore, folder: Path, threads: int, progress: Progress) -> None:
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        chunks = store.chunks()
        outputs: dict[tuple[str, str], NDArray[Any]] = {}
        for split in store.info.splits:
            for name in store.arrays:
                shape = (store.info.splits[split].tiles, *store.shape(split, name))
                path = building / f"{split}-{name}.npy"
                outputs[split, name] = np.lib.format.open_memmap(path, "w+", store.dtype(name), shape)
                # A sparse file would end a later write by a bus error where the disk is full; this raises instead.
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

        def one(chunk: tuple[Split, str, int]) -> None:
            split, name, index = chunk
            store.tile(split, name, index, out=outputs[split, name][index])

        with ThreadPoolExecutor(threads) as pool:
            for done, _ in enumerate(pool.map(one, chunks), start=1):
                progress(done, len(chunks))
        for output in outputs.values():
            output.flush()  # type: ignore[attr-defined]
        (building / _COMPLETE).write_text(json.dumps({"bytes": decoded_bytes(store), "store": str(store.path)}))
        building.rename(folder)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise disk_full(error, folder) or error from error


def _make_room(cache_dir: Path, keep_bytes: int) -> None:
    """Remove the longest unused stores until the rest is at most ``keep_bytes``.

    Trials that still map a removed file keep reading it: the kernel frees it with their last mapping.
    """
    entries = []
    for marker in cache_dir.glob(f"*/{_COMPLETE}"):
        entries.append((marker.stat().st_mtime, json.loads(marker.read_text())["bytes"], marker.parent))
    total = sum(size for _, size, _ in entries)
    for _, size, folder in sorted(entries):
        if total <= keep_bytes:
            break
        shutil.rmtree(folder)
        total -= size
