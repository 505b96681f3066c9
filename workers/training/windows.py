"""Whole-tile prediction by a grid of overlapping windows.

Rows and columns each have their own offsets, so tiles need not be square (the reference mixes them up).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def window_offsets(side: int, window: int) -> list[int]:
    """ceil(side / window) offsets, evenly spread and rounded so that first and last touch the borders."""
    if side <= window:
        return [0]
    count = -(-side // window)
    return [int(offset) for offset in np.linspace(0, side - window, count).round()]


def sliding_logits(
    predict: Callable[[dict[str, Tensor]], Tensor], groups: dict[str, Tensor], window: tuple[int, int], batch: int
) -> Tensor:
    """Logits (N, classes, H, W) of whole tiles, averaged where windows overlap.

    Args:
        predict: from groups of crops (n, C, h, w) to logits (n, classes, h, w) or larger; padding is cut off.
        groups: whole tiles (N, C, H, W) by input group.
        window: height and width of a crop.
        batch: crops predicted at once.
    """
    first = next(iter(groups.values()))
    tiles, height, width = first.shape[0], first.shape[-2], first.shape[-1]
    h, w = min(window[0], height), min(window[1], width)
    places = [(n, y, x) for n in range(tiles) for y in window_offsets(height, h) for x in window_offsets(width, w)]
    total: Tensor | None = None
    count = torch.zeros((height, width), device=first.device)
    for y in window_offsets(height, h):
        for x in window_offsets(width, w):
            count[y : y + h, x : x + w] += 1
    for start in range(0, len(places), batch):
        batch_places = places[start : start + batch]
        crops = {
            name: torch.stack([g[n, :, y : y + h, x : x + w] for n, y, x in batch_places]) for name, g in groups.items()
        }
        logits = predict(crops)[..., :h, :w]
        if total is None:
            total = logits.new_zeros((tiles, logits.shape[1], height, width))
        for (n, y, x), part in zip(batch_places, logits, strict=True):
            total[n, :, y : y + h, x : x + w] += part
    assert total is not None
    return total / count
