"""Glacial lakes in mountain terrain, 8-bit RGB in the published layout of glid.

Lakes lie in hollows; their water runs from dark blue to milky turquoise with its load of glacial flour. Cast
shadows are as dark as deep lakes and as blue, snow and ice are as bright as milky ones, and wet rock fills the
rest of the range: no threshold on one band tells them apart, colour, texture and outline together do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label

from cryobench.datasets.synth.noise import smooth, terrain

_ROCK = np.array([112.0, 100.0, 88.0])
_SNOW = np.array([228.0, 233.0, 240.0])
_DEEP = np.array([22.0, 52.0, 74.0])
_MILKY = np.array([122.0, 178.0, 182.0])
_SHADOW = np.array([0.26, 0.34, 0.46])


def lake_scene(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene: image (3, size, size) in the order B4 B3 B2, mask (size, size) with 1 on lakes."""
    height = terrain(rng, size, size / 2)
    east, north = np.gradient(height)
    azimuth = rng.uniform(0, 2 * np.pi)
    slope = np.hypot(east, north) * size / 12
    light = 1 - 0.55 * np.tanh((np.cos(azimuth) * east + np.sin(azimuth) * north) * size / 9)

    snow = 1 / (1 + np.exp(-5 * (height - rng.uniform(0.6, 1.3) + 0.25 * smooth(rng, size, size / 10))))
    colour = _ROCK[:, None, None] * (1 + 0.12 * smooth(rng, size, size / 6) + 0.07 * smooth(rng, size, 3))
    colour = colour * (1 - snow) + _SNOW[:, None, None] * snow
    colour = colour * light
    cast = np.clip((light - 1.22) / 0.12, 0, 1) * (rng.random() < 0.9)
    cast = np.maximum(cast, cast_shadow(rng, size))
    colour = colour * (1 - cast) + colour * _SHADOW[:, None, None] * cast

    lakes = lake_mask(rng, height, slope, size)
    flour = np.clip(0.5 + 0.4 * smooth(rng, size, size / 2) + rng.uniform(-0.4, 0.4), 0, 1)
    water = _DEEP[:, None, None] * (1 - flour) + _MILKY[:, None, None] * flour
    colour = np.where(lakes, water * (1 + 0.02 * smooth(rng, size, 4)), colour)

    noise = rng.normal(0, 5, colour.shape)
    blurred = gaussian_filter(colour, (0, 0.6, 0.6))
    return np.clip(blurred + noise, 0, 255).astype(np.uint8), lakes.astype(np.uint8)


def lake_mask(
    rng: np.random.Generator, height: NDArray[np.float64], slope: NDArray[np.float64], size: int
) -> NDArray[np.bool_]:
    """Flat bottoms of hollows, larger than a speck; a scene in eight has none."""
    if rng.random() < 0.125:
        return np.zeros((size, size), bool)
    wet = height + 0.25 * smooth(rng, size, size / 8) + 0.1 * slope
    level = np.quantile(wet, rng.uniform(0.04, 0.2))
    parts, count = label(wet < level)
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    large = np.flatnonzero(areas >= max(12, size * size // 800))
    return np.isin(parts, large[large > 0])


def cast_shadow(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Shadows of ridges outside the scene: soft-edged dark patches without relation to the terrain."""
    field = smooth(rng, size, size / 4)
    return np.clip((field - rng.uniform(0.9, 1.5)) / 0.15, 0, 1)
