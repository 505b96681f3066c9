"""Average pooling and bilinear resizing of feature maps, in two forms.

Torch's own, and where algorithms that always round alike are asked for, products with fixed matrices: on GPUs torch's
gradient of pooling adds in varying order, and its substitute for that of resizing sorts every pixel. Both forms agree
but for rounding.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AveragePool(nn.Module):
    """Adaptive average pooling (B, C, H, W) to (B, C, size, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each of the overlapping windows that torch's `AdaptiveAvgPool2d` takes."""
        if torch.are_deterministic_algorithms_enabled():
            return pool_by_matrices(x, self.size)
        return F.adaptive_avg_pool2d(x, self.size)


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Maps (B, C, H, W) at ``size`` by bilinear interpolation, corners not aligned."""
    if torch.are_deterministic_algorithms_enabled():
        return resize_by_matrices(x, (int(size[0]), int(size[1])))
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def pool_by_matrices(x: Tensor, size: int) -> Tensor:
    """Adaptive average pooling as rows times maps times columns, in float32."""
    rows, columns = (averaging_matrix(side, size, x.device) for side in x.shape[-2:])
    return _product(x, rows, columns)


def resize_by_matrices(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation as rows times maps times columns, in float32."""
    if x.shape[-2:] == size:
        return x
    rows, columns = (bilinear_matrix(a, b, x.device) for a, b in zip(x.shape[-2:], size, strict=True))
    return _product(x, rows, columns)


@lru_cache(maxsize=256)
def averaging_matrix(source: int, target: int, device: torch.device) -> Tensor:
    """(target, source) float32: row i averages from floor(i * source / target) to ceil((i + 1) * source / target)."""
    matrix = torch.zeros(target, source, device="cpu")
    for i in range(target):
        start, end = i * source // target, -(-(i + 1) * source // target)
        matrix[i, start:end] = 1 / (end - start)
    return matrix.to(device)


@lru_cache(maxsize=256)
def bilinear_matrix(source: int, target: int, device: torch.device) -> Tensor:
    """(target, source) float32: row i has the two weights of the position (i + 0.5) * source / target - 0.5."""
    matrix = torch.zeros(target, source, device="cpu")
    for i in range(target):
        position = max(0.0, (i + 0.5) * source / target - 0.5)
        below = min(math.floor(position), source - 1)
        above, share = min(below + 1, source - 1), position - below
        matrix[i, below] += 1 - share
        matrix[i, above] += share
    return matrix.to(device)


def _product(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # In bfloat16 an average's weights would be wrong by up to 0.4 %, in one direction for all of them.
    with torch.autocast(x.device.type, enabled=False):
        found = rows @ x.float() @ columns.T
    return found.to(x.dtype)
