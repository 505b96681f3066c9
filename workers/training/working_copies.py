"""The working copies of an object store's trials on this node, as what they take of the node's cache."""

from __future__ import annotations

from pathlib import Path

from cryobench.datasets.batches.node_cache import Neighbour
from cryobench.workers.record.folder import RESULT
from cryobench.workers.record.stamps import Stamps


def working_copies(cache_dir: Path) -> list[Neighbour]:
    """Each trial's folder of every store; one whose result the store has may go."""
    return [_copy(folder) for folder in cache_dir.glob("storages/*/worker/trials/*") if folder.is_dir()]


def _copy(folder: Path) -> Neighbour:
    size, used = 0, folder.stat().st_mtime
    for path in folder.iterdir():
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # a trial that runs replaces its files
        size, used = size + stat.st_size, max(used, stat.st_mtime)
    return Neighbour(folder, size, used, lambda: _is_in_store(folder))


def _is_in_store(folder: Path) -> bool:
    # The result is brought last; one that was never brought is here alone.
    return (folder / RESULT).exists() and Stamps(folder).same_here(RESULT)
