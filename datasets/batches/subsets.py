"""Few-shot subsets of the training split, from stored class counts alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from cryobench.conf.streams import stream


def tile_groups(class_pixels: NDArray[np.int64], bins: int) -> list[tuple[int, ...]]:
    """The group of each tile: per class ceil(fraction x bins) - 1, so an absent class is -1 (BENCHMARK.md).

    ``class_pixels`` is (N, classes); fractions are of the labelled pixels.
    """
    # Integer arithmetic: ceil(a / b) without a rounding that could put a fraction of exactly 1/3 into the next bin.
    totals = np.maximum(class_pixels.sum(axis=1, keepdims=True), 1)
    binned = -(-class_pixels * bins // totals) - 1
    return [tuple(row) for row in binned.tolist()]


def subset_digest(tiles: NDArray[np.int64]) -> str:
    """SHA-256 over the tile numbers of a subset, ascending."""
    return hashlib.sha256(",".join(map(str, tiles.tolist())).encode()).hexdigest()


def stratified_subset(class_pixels: NDArray[np.int64], fraction: float, bins: int, seed: int) -> NDArray[np.int64]:
    """Ascending tile numbers of a stratified subset: int(fraction x size) of each group, at least one.

    Every group is shuffled by its own named stream and its head taken, so a larger fraction contains a smaller one.
    """
    if fraction >= 1:
        return np.arange(len(class_pixels))
    members: dict[tuple[int, ...], list[int]] = {}
    for tile, group in enumerate(tile_groups(class_pixels, bins)):
        members.setdefault(group, []).append(tile)
    chosen: list[int] = []
    for group, tiles in members.items():
        order = stream(seed, "subset", *group).permutation(len(tiles))
        count = max(1, int(len(tiles) * fraction))
        chosen.extend(tiles[i] for i in order[:count])
    return np.asarray(sorted(chosen), np.int64)
