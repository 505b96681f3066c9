"""Telling that training blew up though its loss is still a number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cryobench.workers.model.segmentation import SegmentationModel

#: About 1.8e19, the largest value whose square float32 holds. Weights beyond it are no model any more: normalisation
#: and AdamW square what such weights make, so activations and moments become infinite with the next batch, while a loss
#: that was taken before the last step still looks well.
LARGEST_WEIGHT = math.sqrt(torch.finfo(torch.float32).max)


@torch.no_grad()
def diverged_weights(model: SegmentationModel) -> str | None:
    """What is wrong with the trained weights, or None. The device is waited for once.

    Buffers (running statistics) have to be finite only: a variance is itself a square.
    """
    learning: list[Tensor] = [p for p in model.trained_parameters() if p.numel()]
    buffers = [t for t in model.trained_state().values() if t.is_floating_point() and t.numel()]
    weight, any_value = torch.stack([_largest(learning), _largest(buffers)]).tolist()
    if not math.isfinite(weight) or not math.isfinite(any_value):
        return "Weights or running statistics became infinite or no numbers"
    if weight > LARGEST_WEIGHT:
        return f"Weights reached {weight:.1e}, more than float32 can square,"
    return None


def _largest(tensors: list[Tensor]) -> Tensor:
    """The largest absolute value, on the device; NaN if there is one. Allocates nothing of the tensors' size."""
    if not tensors:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(t.float(), math.inf) for t in tensors]
    return torch.stack(norms).max()
