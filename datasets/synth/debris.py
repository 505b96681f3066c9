"""Debris-covered glaciers, ten float channels in [0, 1] in the published layout of gsdd.

A glacier tongue winds down a valley: clean, bright ice above, debris below. Debris has the colours of the rock beside
it; what tells it apart is that it lies on a gentle slope and moves. Scree is as gentle and does not move, snow on steep
walls is as bright as ice: no single channel is enough.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cryobench.datasets.synth.noise import smooth, terrain

#: Reflectance of B2 B3 B4 B8 B11 B12.
_ROCK = np.array([0.13, 0.15, 0.17, 0.21, 0.25, 0.23])
_ICE = np.array([0.55, 0.54, 0.50, 0.42, 0.06, 0.05])
_SNOW = np.array([0.82, 0.82, 0.80, 0.74, 0.11, 0.09])


def debris_scene(rng: np.random.Generator, size: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One scene: image (10, size, size) B2 B3 B4 B8 B11 B12 slope elevation velocity unknown; 1 on debris."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    turn = rng.uniform(0, 2 * np.pi)
    down = (columns - 0.5) * np.cos(turn) + (rows - 0.5) * np.sin(turn)
    across = -(columns - 0.5) * np.sin(turn) + (rows - 0.5) * np.cos(turn)
    bend = rng.uniform(-0.15, 0.15) + 0.08 * np.sin(2 * np.pi * (down * rng.uniform(0.5, 1.2) + rng.random()))
    half = rng.uniform(0.1, 0.2) + 0.025 * smooth(rng, size, size / 5)
    beside = np.abs(across - bend)
    end = rng.uniform(0.15, 0.45)
    glacier = (beside < half) & (down < end)
    debris = glacier & (down > rng.uniform(-0.35, 0.1) + 0.06 * smooth(rng, size, size / 6))

    walls = np.clip((beside - half) / 0.35, 0, 1)
    height = 0.45 - 0.45 * down + 0.55 * walls + 0.05 * terrain(rng, size, size / 4)
    east, north = np.gradient(gaussian_filter(height, 1.0))
    slope = np.clip(np.hypot(east, north) * size / 4 + 0.02 * smooth(rng, size, 4), 0, 1)
    light = 1 - 0.35 * np.tanh((np.cos(turn + 2) * east + np.sin(turn + 2) * north) * size / 3)

    lithology = 1 + 0.18 * smooth(rng, size, size / 6) + 0.08 * smooth(rng, size, 3)
    optical = _ROCK[:, None, None] * lithology
    snow = 1 / (1 + np.exp(-9 * (height - rng.uniform(0.75, 0.95) + 0.08 * smooth(rng, size, size / 10))))
    optical = optical * (1 - snow) + _SNOW[:, None, None] * snow
    ice = _ICE[:, None, None] * (1 + 0.1 * smooth(rng, size, size / 8))
    optical = np.where(glacier & ~debris, ice, optical)
    covered = _ROCK[:, None, None] * (0.92 + 0.16 * smooth(rng, size, 5) + 0.1 * smooth(rng, size, size / 5))
    optical = np.where(debris, covered, optical) * light + rng.normal(0, 0.012, (6, size, size))

    flow = np.clip(1 - (beside / np.maximum(half, 1e-3)) ** 2, 0, 1) * np.clip((end - down) * 2.2, 0.08, 1)
    velocity = np.where(glacier, 0.08 + 0.55 * flow, 0.02) + np.abs(rng.normal(0, 0.035, (size, size)))
    unknown = 0.1 + 0.08 * smooth(rng, size, size / 3)
    image = np.concatenate([optical, np.stack([slope, np.clip(height, 0, 1), velocity, unknown])])
    return np.clip(image, 0, 1).astype(np.float32), debris.astype(np.uint8)
