"""What a model costs: parameters and multiply-adds for one crop, by torch's own counter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cryobench.conf.terms import Modality
from cryobench.conf.trial import TrialSpec
from cryobench.encoders.registry import family_class
from cryobench.workers.model.build import make_decoder, make_model
from cryobench.workers.model.numerics import plain_algorithms


@dataclass(frozen=True)
class ModelCost:
    """Parameters and 10^9 multiply-adds in inference, of the encoder alone and with its decoder."""

    encoder_parameters: int
    decoder_parameters: int
    encoder_gmacs: float
    gmacs: float


def cost_of(
    family: str,
    settings: Mapping[str, Any],
    bands: Mapping[Modality, tuple[str, ...]],
    input_size: int | None,
    crop: int,
    decoder: str,
    decoder_channels: int,
    classes: int,
) -> ModelCost:
    """The cost of an encoder with its decoder for one crop of ``crop`` pixels a side; nothing is allocated."""
    with torch.device("meta"), torch.no_grad():
        encoder = family_class(family, family).build(bands, input_size, settings).eval()
        head = make_decoder(encoder, decoder, decoder_channels, 0.0, classes).eval()
        inputs = {modality: torch.empty(1, len(names), crop, crop) for modality, names in bands.items()}
        with FlopCounterMode(display=False) as inner:
            features = encoder(inputs)
        with FlopCounterMode(display=False) as outer:
            head(features, (crop, crop))
    return ModelCost(
        encoder_parameters=sum(p.numel() for p in encoder.parameters()),
        decoder_parameters=sum(p.numel() for p in head.parameters()),
        encoder_gmacs=inner.get_total_flops() / 2e9,
        gmacs=(inner.get_total_flops() + outer.get_total_flops()) / 2e9,
    )


def multiply_adds(spec: TrialSpec, classes: int, window: tuple[int, int]) -> float:
    """10^9 multiply-adds of a trial's encoder and decoder for one crop in inference, the paper's "GFLOPs".

    Counted on a model of shapes alone: a real one's inputs and plain attention would need gigabytes.
    """
    size = (spec.encoder.input_size,) * 2 if isinstance(spec.encoder.input_size, int) else window
    with torch.device("meta"), torch.no_grad():
        model = make_model(spec, classes).eval()
        inputs = {m: torch.empty(1, len(bands), *size) for m, bands in spec.encoder.bands.items()}
        # The counter does not know every fused attention kernel; the plain one is counted alike on every device. And
        # what replaces operations that vary from run to run is no cost of the model's.
        with plain_algorithms(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(inputs)
    return float(counter.get_total_flops()) / 2e9
