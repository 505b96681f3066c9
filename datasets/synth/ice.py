"""Sea ice seen by Sentinel-1: scenes of HH, HV and incidence angle as float, in the published layout of sicd.

Six types that differ in backscatter and, where that overlaps, in texture: wind-roughened water is as bright as old
ice, new ice as dark as calm water; floes, leads and ridges tell them apart. Backscatter falls with the incidence angle.
The edge of the swath is NaN, and land has no label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryobench.conf.terms import IGNORE
from cryobench.datasets.synth.noise import smooth, terrain

#: HH, HV, grain of the texture in pixels, and its strength, a class: water, new, young, thin and thick first-year, old.
_TYPES = (
    (-0.55, -0.75, 24.0, 0.05),
    (-0.62, -0.58, 9.0, 0.06),
    (-0.15, -0.38, 5.0, 0.16),
    (-0.05, -0.22, 7.0, 0.13),
    (0.12, -0.05, 12.0, 0.15),
    (0.45, 0.34, 6.0, 0.22),
)


def ice_scene(rng: np.random.Generator, size: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One scene: image (3, size, size) HH HV incidence angle with NaN at the edge; types 0 to 5, 255 unlabelled."""
    age = (
        0.8 * smooth(rng, size, size / 2.5) + 0.45 * smooth(rng, size, size / 7) + 0.15 * terrain(rng, size, size / 12)
    )
    shares = rng.dirichlet(np.array([5.0, 0.7, 0.9, 1.0, 2.2, 2.0]))
    limits = np.quantile(age, np.cumsum(shares)[:-1].clip(0.02, 0.99))
    types = np.digitize(age, limits)
    leads = np.abs(smooth(rng, size, size / 6)) < 0.05
    types = np.where(leads & (types > 1), rng.integers(0, 2), types)

    wind = np.clip(smooth(rng, size, size / 3) - rng.uniform(0, 1.2), 0, None) * 0.55
    hh, hv = np.zeros((size, size)), np.zeros((size, size))
    for number, (level_hh, level_hv, grain, strength) in enumerate(_TYPES):
        texture = strength * smooth(rng, size, grain)
        here = types == number
        hh[here] = (level_hh + texture)[here]
        hv[here] = (level_hv + 0.7 * texture)[here]
    hh += np.where(types == 0, wind, 0)
    angle = np.broadcast_to(np.linspace(-1.4, 1.4, size), (size, size))
    hh = hh - 0.14 * angle + rng.normal(0, 0.09, (size, size))
    hv = hv - 0.05 * angle + rng.normal(0, 0.07, (size, size))

    mask = types.astype(np.uint8)
    mask[smooth(rng, size, size / 3) > rng.uniform(1.7, 2.6)] = IGNORE
    image = np.stack([hh, hv, angle]).astype(np.float32)
    margin = int(rng.integers(0, max(2, size // 12)))
    if margin:
        image[:, :, -margin:] = np.nan
    return image, mask
