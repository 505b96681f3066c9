"""What a model costs: multiply-adds for one crop, by torch's own counter."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from cryobench.conf.trial import TrialSpec
from cryobench.workers.model import SegmentationModel


@torch.no_grad()
def multiply_adds(model: SegmentationModel, spec: TrialSpec, window: tuple[int, int]) -> float:
    """10^9 multiply-adds of encoder and decoder for one crop in inference, the paper's "GFLOPs"."""
    size = (spec.encoder.input_size,) * 2 if isinstance(spec.encoder.input_size, int) else window
    device = next(model.parameters()).device
    inputs = {m: torch.zeros(1, len(bands), *size, device=device) for m, bands in spec.encoder.bands.items()}
    training = model.training
    with FlopCounterMode(display=False) as counter:
        model.eval()(inputs)
    model.train(training)
    return float(counter.get_total_flops()) / 2 / 1e9
