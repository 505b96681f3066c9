"""The node cache: a store decoded once a node into memory-mapped arrays that all trials there read.

Keyed by the store's digest, built under a lock, bounded in size: the stores that were used longest ago make room.
What else lies in the cache's folder (`Neighbour`) counts in its size, and goes first.
An entry that lost files, or has others than the store asks for, or whose tiles are not the store's by their CRC-32
(`cryobench.datasets.batches.cache_check`), is built again. A store that does not fit at all is
read chunk by chunk instead (`StoredTiles`), slower and said so.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cryobench.conf.errors import ConfigError, disk_full
from cryobench.conf.terms import Split
from cryobench.datasets.batches.cache_check import arrays_of, damaged_tile
from cryobench.datasets.batches.tile_source import CachedTiles, TileSource
from cryobench.datasets.store.tile_store import TileStore

_COMPLETE = "complete.json"
#: Beside the entries, only while the lock is held; found under it, they are what a killed process left behind.
_BUILDING, _REMOVING = ".building", ".removing"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Neighbour:
    """A folder of somebody else's in the cache's folder.

    ``used`` is when it was used last, in seconds since 1970; ``may_go`` is asked before it is removed.
    """

    folder: Path
    bytes: int
    used: float
    may_go: Callable[[], bool]


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


def _require_writable(cache_dir: Path) -> None:
    """Raise ConfigError where no file can be made: a lock there would be waited for without end."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_dir):
            pass
    except OSError as error:
        if full := disk_full(error, cache_dir):
            raise full from error
        raise ConfigError(
            f"The node cache {cache_dir} cannot be written ({error.strerror}). Give another folder with --cache-dir."
        ) from error


def open_tiles(
    store: TileStore,
    cache_dir: Path,
    limit_bytes: int,
    *,
    threads: int = 2,
    progress: Progress = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
    neighbours: Callable[[], Sequence[Neighbour]] = tuple,
) -> Callable[[Split], TileSource]:
    """A function from split to its tiles, from the node cache where the store fits into it.

    Whoever comes first decodes, in threads and checking every tile; the others wait for the lock and read. ``tell``
    is told if the store is too large for the cache and so is read chunk by chunk, and if its entry is damaged and so
    is built again.

    Raises:
        CorruptDataError: a chunk is not what was written; names tile and array.
        DiskFullError: no space left in ``cache_dir``; nothing half-built stays.
    """
    needed = decoded_bytes(store)
    others = neighbours()
    _trim(cache_dir, limit_bytes, others)
    if needed > limit_bytes:
        tell(
            f"{store.path} has {needed / 1e9:.2f} GB decoded, the node cache {limit_bytes / 1e9:.2f} GB: its chunks "
            "are read and decoded for every batch, ahead of use. Raise resources.cache_limit_gb to make this faster."
        )
        return lambda split: StoredTiles(store, split)
    folder = cache_dir / store.info.digest[:24]
    try:
        return _open_entry(store, folder, threads)
    except (_DamagedEntryError, FileNotFoundError):
        pass  # without the lock this may be an entry that is just making room; with it there is no doubt
    _require_writable(cache_dir)
    with FileLock(cache_dir / "cache.lock"):
        _remove_leftovers(cache_dir)
        if folder.exists():
            try:
                return _open_entry(store, folder, threads)
            except _DamagedEntryError as damage:
                tell(f"The node cache's entry {folder} is damaged: {damage}. It is built again from {store.path}.")
                _remove_entry(folder)
        left = sum(other.bytes for other in _trim(cache_dir, limit_bytes - needed, others))
        _make_room(cache_dir, limit_bytes - needed - left)
        _decode(store, folder, threads, progress)
        return _open_entry(store, folder, threads)


class _DamagedEntryError(Exception):
    """An entry of the cache that says whole and is not; the message says what is wrong with which file."""


def _open_entry(store: TileStore, folder: Path, threads: int) -> Callable[[Split], TileSource]:
    """Map every array of an entry, after comparing it with what the store asks for: headers, sizes, every tile.

    Raises:
        _DamagedEntryError: a file that is missing or is not the array it should be.
        FileNotFoundError: one that went away in this moment, which takes not holding the lock.
    """
    try:
        os.utime(folder / _COMPLETE)
    except FileNotFoundError as error:
        raise _DamagedEntryError(f"{_COMPLETE} is missing") from error
    for split, name, path in arrays_of(store, folder):
        expected = f"{store.dtype(name)} {(store.info.splits[split].tiles, *store.shape(split, name))}"
        try:
            array = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise _DamagedEntryError(f"{path.name} cannot be read ({error}), expected {expected}") from error
        if (found := f"{array.dtype} {array.shape}") != expected:
            raise _DamagedEntryError(f"{path.name} holds {found}, expected {expected}")
        if (size := path.stat().st_size) != array.offset + array.nbytes:
            raise _DamagedEntryError(f"{path.name} has {size:,} bytes, expected {array.offset + array.nbytes:,}")
    if (problem := damaged_tile(store, folder, threads)) is not None:
        raise _DamagedEntryError(problem)
    return {split: CachedTiles(folder, split, store.arrays) for split in store.info.splits}.__getitem__


def _decode(store: TileStore, folder: Path, threads: int, progress: Progress) -> None:
    building = folder.with_name(folder.name + _BUILDING)
    try:
        building.mkdir()
        chunks = store.chunks()
        outputs: dict[tuple[str, str], NDArray[Any]] = {}
        for split, name, path in arrays_of(store, building):
            shape = (store.info.splits[split].tiles, *store.shape(split, name))
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
    except BaseException as error:  # a corrupt chunk and Ctrl-C leave nothing behind either
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, OSError) and (full := disk_full(error, folder)):
            raise full from error
        raise


def _make_room(cache_dir: Path, keep_bytes: int) -> None:
    """Remove the longest unused stores until the rest is at most ``keep_bytes``.

    Trials that still map a removed file keep reading it: the kernel frees it with their last mapping.
    """
    entries = _entries(cache_dir)
    total = sum(size for _, size, _ in entries)
    for _, size, folder in entries:
        if total <= keep_bytes:
            break
        _remove_entry(folder)
        total -= size


def _trim(cache_dir: Path, keep_bytes: int, others: Sequence[Neighbour]) -> list[Neighbour]:
    """Remove neighbours, those unused longest first, until the whole is at most ``keep_bytes``; those that stay."""
    stay = sorted((other for other in others if other.folder.exists()), key=lambda other: other.used)
    total = sum(other.bytes for other in stay)
    if not total:
        return stay
    total += sum(size for _, size, _ in _entries(cache_dir))
    for other in list(stay):
        if total <= keep_bytes:
            break
        if other.may_go():
            shutil.rmtree(other.folder, ignore_errors=True)
            stay.remove(other)
            total -= other.bytes
    return stay


def _entries(cache_dir: Path) -> list[tuple[float, int, Path]]:
    """When each store was opened last, its bytes and its folder, the longest unused first."""
    entries = []
    for marker in cache_dir.glob(f"*/{_COMPLETE}"):
        try:
            size = sum(path.stat().st_size for path in marker.parent.iterdir())
            entries.append((marker.stat().st_mtime, size, marker.parent))
        except FileNotFoundError:
            continue  # it just makes room for another
    return sorted(entries)


def _remove_entry(folder: Path) -> None:
    # Renamed first: whoever opens it in this moment finds it whole or not at all.
    aside = folder.with_name(folder.name + _REMOVING)
    folder.rename(aside)
    shutil.rmtree(aside)


def _remove_leftovers(cache_dir: Path) -> None:
    for suffix in (_BUILDING, _REMOVING):
        for path in cache_dir.glob(f"*{suffix}"):
            shutil.rmtree(path)
