"""Re-reads every chunk of a store against its digest, every mask against its labels and counts, and computes the
statistics anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryobench.conf.errors import CorruptDataError
from cryobench.conf.terms import IGNORE, Split
from cryobench.datasets.store.moments import Moments
from cryobench.datasets.store.percentiles import percentiles
from cryobench.datasets.store.store_info import store_digest, tile_digest
from cryobench.datasets.store.tile_store import TileStore

#: Other processors and releases of NumPy sum in another order.
_ROUNDING = 1e-9


def verify(
    store: TileStore, *, threads: int = 2, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """What is wrong with ``store``, one message a damaged tile; empty if it is whole."""
    problems = []
    records = [record for split in store.info.splits for record in store.records(split)]
    found = store_digest(store.info.classes, store.info.groups, records)
    if found != store.info.digest:
        problems.append(
            f"{store.path}: the index does not belong to this store: expected digest {store.info.digest[:12]}…, "
            f"found {found[:12]}…. Prepare the data set again."
        )
    chunks = store.chunks()
    moments: dict[tuple[str, int], Moments] = {}

    def check(chunk: tuple[Split, str, int]) -> str | None:
        split, name, index = chunk
        try:
            values = store.tile(split, name, index)
        except CorruptDataError as error:
            return str(error)
        record = store.records(split)[index]
        where = store.name_of(split, name, index)
        if tile_digest(values) != record.digests[name]:
            return f"{where} is not what was written: its SHA-256 differs. Prepare the data set again."
        if name == "mask":
            counts = np.bincount(values.ravel(), minlength=IGNORE + 1)
            classes = len(store.info.classes)
            if counts[classes:IGNORE].any():
                wrong = np.flatnonzero(counts[classes:IGNORE]) + classes
                return f"{where} holds label values {wrong.tolist()}, expected 0 to {classes - 1} or {IGNORE}."
            if tuple(counts[:classes].tolist()) != record.class_pixels:
                return f"{where} has {counts[:classes].tolist()} pixels a class, the index says {record.class_pixels}."
        elif split == "train":
            moments[name, index] = Moments.of(values)
        return None

    with ThreadPoolExecutor(threads) as pool:
        for done, problem in enumerate(pool.map(check, chunks), start=1):
            if problem:
                problems.append(problem)
            progress(done, len(chunks))
    return problems or _wrong_statistics(store, moments)


def _wrong_statistics(store: TileStore, moments: dict[tuple[str, int], Moments]) -> list[str]:
    """What the store says of its training split and is not so; its tiles are right."""
    problems = []
    tiles = range(store.info.splits["train"].tiles)
    for name, group in store.info.groups.items():

        def values(name: str = name) -> Iterator[NDArray[Any]]:
            return (store.tile("train", name, index) for index in tiles)

        found = Moments.merged(moments[name, index] for index in tiles)
        said = group.statistics
        wanted = tuple(sorted(said.percentiles))
        ranks = percentiles(values, store.dtype(name), len(group.bands), found.count, wanted)
        pairs = [
            ("mean", said.mean, found.mean),
            ("std", said.std, found.std()),
            ("min", said.min, found.min),
            ("max", said.max, found.max),
            *((f"percentile {q}", said.percentiles[q], ranks[row].tolist()) for row, q in enumerate(wanted)),
        ]
        for what, recorded, computed in pairs:
            if not np.allclose(recorded, computed, rtol=_ROUNDING, atol=0):
                problems.append(
                    f"{store.path}: the {what} of {name} in the training split is {computed}, the store says "
                    f"{list(recorded)}. Prepare the data set again."
                )
    return problems
