"""Glacial lakes seen by optics, radar and a height model: ten uint16 channels in the published layout of gld.

Water is dark in B8 and B11, flat, and has no radar coherence. Cast shadows are as dark, snow keeps no coherence either,
and valley floors are as flat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryobench.datasets.synth.lakes import cast_shadow, lake_mask
from cryobench.datasets.synth.noise import smooth, terrain

#: Reflectance x 10,000 of B2 B3 B4 B8 B11.
_ROCK = np.array([1300.0, 1400.0, 1550.0, 1900.0, 2300.0])
_SNOW = np.array([5200.0, 5000.0, 4800.0, 4300.0, 900.0])
_WATER = np.array([1150.0, 1250.0, 950.0, 420.0, 180.0])


def radar_lake_scene(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """One scene: image (10, size, size) B2 B3 B4 B8 B11 thermal coherence slope elevation unknown; 1 on lakes."""
    height = terrain(rng, size, size / 2)
    east, north = np.gradient(height)
    steep = np.hypot(east, north) * size / 12
    lakes = lake_mask(rng, height, steep, size)
    azimuth = rng.uniform(0, 2 * np.pi)
    light = 1 - 0.55 * np.tanh((np.cos(azimuth) * east + np.sin(azimuth) * north) * size / 9)

    snow = 1 / (1 + np.exp(-5 * (height - rng.uniform(0.6, 1.3) + 0.25 * smooth(rng, size, size / 10))))
    optical = _ROCK[:, None, None] * (1 + 0.13 * smooth(rng, size, size / 6) + 0.07 * smooth(rng, size, 3))
    optical = (optical * (1 - snow) + _SNOW[:, None, None] * snow) * np.clip(light, 0.2, 2)
    shade = np.maximum(cast_shadow(rng, size), np.clip((light - 1.25) / 0.12, 0, 1))
    optical = optical * (1 - 0.9 * shade)
    milky = np.clip(1 + 0.45 * smooth(rng, size, size / 2), 0.3, 2.2)
    optical = np.where(lakes, _WATER[:, None, None] * milky, optical) + rng.normal(0, 45, (5, size, size))

    thermal = 18_700 - 1_600 * height - 900 * snow - 500 * lakes + 150 * smooth(rng, size, 4)
    calm = np.clip(195 - 75 * snow - 45 * np.tanh(steep), 40, 255)
    coherence = np.where(lakes, rng.uniform(55, 95), calm) + rng.normal(0, 22, (size, size))
    tilt = np.where(lakes, 0.12, 0.7) * steep  # height models are rough on water too
    slope = np.degrees(np.arctan(tilt)) + np.abs(rng.normal(0, 4.0, (size, size)))
    elevation = 4_850 + 420 * height
    unknown = 125 + 28 * smooth(rng, size, size / 4)
    image = np.concatenate([optical, np.stack([thermal, coherence.clip(0, 255), slope, elevation, unknown])])
    return np.clip(np.round(image), 0, 65_535).astype(np.uint16), lakes.astype(np.uint8)
