"""Sine-cosine embeddings of positions, wavelengths and scales (ENCODERS.md's convention: sines first)."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_1d(positions: Tensor, size: int) -> Tensor:
    """(…,) positions to (…, size): sin(p ω) for size / 2 frequencies, then cos(p ω), ωᵢ = 10000^(-i / (size / 2)).

    In float32 like the reference: at wavelengths in nm the angles' rounding shows in the outputs.
    """
    half = size // 2
    omega = 1.0 / 10000 ** (torch.arange(half, dtype=torch.float32, device=positions.device) / (size / 2))
    angles = positions.float()[..., None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_2d(height: int, width: int, size: int, resolution: float = 1.0) -> Tensor:
    """(1, 1 + height * width, size): first half for columns, second for rows, times ``resolution``; class row zero."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    parts = [sincos_1d(axis.flatten() * resolution, size // 2) for axis in (columns, rows)]
    grid = torch.cat(parts, dim=-1)
    return torch.cat([torch.zeros(1, size), grid])[None]
