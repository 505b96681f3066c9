"""Smooth random fields from which the generated scenes are made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

Field = NDArray[np.float64]


def smooth(rng: np.random.Generator, size: int, scale: float) -> Field:
    """A standard normal field (size, size), smooth over ``scale`` pixels, mean 0 and standard deviation 1."""
    coarse = max(4, int(np.ceil(size / max(scale, 1.0))) + 3)
    field = zoom(rng.standard_normal((coarse, coarse)), size / coarse + 1.0, order=3)[:size, :size]
    return standard(gaussian_filter(field, max(scale / 4, 0.5)))


def terrain(rng: np.random.Generator, size: int, scale: float) -> Field:
    """A fractal field (size, size): octaves of halving scale and amplitude from ``scale`` pixels down."""
    field = np.zeros((size, size))
    amplitude = 1.0
    while scale >= 2:
        field += amplitude * smooth(rng, size, scale)
        scale, amplitude = scale / 2, amplitude * 0.5
    return standard(field)


def standard(field: Field) -> Field:
    """``field`` shifted and scaled to mean 0 and standard deviation 1."""
    spread = float(field.std())
    shifted: Field = (field - field.mean()) / (spread if spread > 0 else 1.0)
    return shifted
