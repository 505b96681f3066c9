"""Whether the node cache still holds what the store says: every tile against its CRC-32, once a process.

A file whose size, time or inode is another than when it was checked is checked again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryobench.conf.terms import Split
from cryobench.datasets.store.store_info import tile_check
from cryobench.datasets.store.tile_store import TileStore

Stamp = tuple[int, int, int]
#: Bytes that one task compares: a task a tile would cost as much as comparing a small one.
_TOGETHER = 16 << 20

_checked: dict[Path, Stamp] = {}
_lock = threading.Lock()


def damaged_tile(store: TileStore, folder: Path, threads: int = 2) -> str | None:
    """The first tile in a cache's entry that is not what the store says, in words; None if all are.

    Args:
        store: whose decoded arrays lie in ``folder``.
        folder: the entry, its files of the right shape and size.
        threads: that read and compare.

    Raises:
        CorruptDataError: the store's own index cannot be read.
        OSError: a file cannot be read.
    """
    with _lock:
        files = [one for one in arrays_of(store, folder) if _checked.get(one[2]) != _stamp(one[2])]
    with ThreadPoolExecutor(threads) as pool:
        for split, name, path in files:
            before, expected = _stamp(path), [record.checks[name] for record in store.records(split)]
            array = np.load(path, mmap_mode="r")
            step = max(1, _TOGETHER * len(array) // array.nbytes)
            runs = [range(start, min(start + step, len(array))) for start in range(0, len(array), step)]
            wrong = pool.map(partial(_wrong, array, expected), runs)
            number = next((number for number in wrong if number is not None), None)
            if number is not None:
                return f"tile {number} of {path.name} is not what was written there"
            with _lock:
                _checked[path] = before
    return None


def _wrong(array: NDArray[Any], expected: Sequence[int], numbers: range) -> int | None:
    return next((number for number in numbers if tile_check(np.asarray(array[number])) != expected[number]), None)


def arrays_of(store: TileStore, folder: Path) -> Iterator[tuple[Split, str, Path]]:
    """Split, array and file of everything that an entry holds."""
    for split in store.info.splits:
        for name in store.arrays:
            yield split, name, folder / f"{split}-{name}.npy"


def _stamp(path: Path) -> Stamp:
    stat = os.stat(path)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
