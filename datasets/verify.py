"""Re-reads every chunk of a store against its digest."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cryobench.conf.errors import CorruptDataError
from cryobench.datasets.store import TileStore, store_digest


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
    chunks = [
        (split, name, i)
        for split, info in store.info.splits.items()
        for name in store.arrays
        for i in range(info.tiles)
    ]

    def check(chunk: tuple[str, str, int]) -> str | None:
        split, name, index = chunk
        try:
            store.tile(split, name, index)  # type: ignore[arg-type]
        except CorruptDataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        for done, problem in enumerate(pool.map(check, chunks), start=1):
            if problem:
                problems.append(problem)
            progress(done, len(chunks))
    return problems
