"""A calving front seen by radar, one 8-bit channel with four zones in the reference's form of caffe.

Glacier, stone and ocean with its melange return overlapping intensities under multiplicative speckle; what tells
them apart is texture (crevasses, facets, floes) and where they lie. The area without information is black, and
so are radar shadows among the stone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryobench.datasets.synth.noise import smooth, terrain

NO_INFORMATION, STONE, GLACIER, OCEAN = range(4)


def front_scene(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene: image (1, size, size), zones (size, size) coded 0 to 3."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    turn = rng.uniform(0, 2 * np.pi)
    along = (columns - 0.5) * np.cos(turn) + (rows - 0.5) * np.sin(turn)
    across = -(columns - 0.5) * np.sin(turn) + (rows - 0.5) * np.cos(turn)

    front = rng.uniform(-0.18, 0.12) + 0.035 * smooth(rng, size, size / 5) + 0.01 * smooth(rng, size, size / 16)
    zones = np.where(along < front, GLACIER, OCEAN)
    half = rng.uniform(0.22, 0.38) + 0.05 * smooth(rng, size, size / 4)
    zones[np.abs(across - rng.uniform(-0.1, 0.1)) > half] = STONE
    if rng.random() < 0.6:
        edge = rng.uniform(0, 2 * np.pi)
        beyond = (columns - 0.5) * np.cos(edge) + (rows - 0.5) * np.sin(edge)
        zones[beyond > rng.uniform(0.33, 0.5)] = NO_INFORMATION

    level = rng.uniform(0.85, 1.2)
    crevasses = np.sin(2 * np.pi * (along * rng.uniform(9, 15) + 0.35 * smooth(rng, size, size / 6)))
    glacier = 88 * (1 + 0.32 * crevasses + 0.12 * smooth(rng, size, size / 3))
    relief = terrain(rng, size, size / 5)
    stone = 92 * np.clip(1 + 0.75 * np.gradient(relief, axis=1) * size / 14, 0.03, 2.6)
    floes = smooth(rng, size, size / 22)
    ocean = np.where(floes > rng.uniform(0.0, 1.1), 105.0, rng.uniform(38, 78)) * (
        1 + 0.1 * smooth(rng, size, size / 3)
    )

    clean = np.select([zones == GLACIER, zones == STONE, zones == OCEAN], [glacier, stone, ocean], 0.0) * level
    looks = rng.uniform(2.5, 5.0)
    speckled = clean * rng.gamma(looks, 1 / looks, clean.shape)
    return np.clip(speckled, 0, 255).astype(np.uint8)[None], zones.astype(np.uint8)
