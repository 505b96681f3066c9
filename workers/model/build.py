"""The model of a trial, from its spec: encoder, weights, adapters, decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from cryobench.conf.errors import MissingWeightsError
from cryobench.conf.streams import stream_seed
from cryobench.conf.trial import TrialSpec
from cryobench.encoders.base import Encoder
from cryobench.encoders.checkpoints import load_weights
from cryobench.encoders.registry import build
from cryobench.workers.model.adapters import add_lora
from cryobench.workers.model.decoders.linear import LinearDecoder
from cryobench.workers.model.decoders.unet_decoder import UNetDecoder
from cryobench.workers.model.decoders.upernet import UPerNet
from cryobench.workers.model.segmentation import SegmentationModel


def build_model(spec: TrialSpec, classes: int, weights_dir: Path | None) -> SegmentationModel:
    """The model of a trial, initialised from the trial's own streams and the published weights, on the CPU.

    Raises:
        MissingWeightsError, BadCheckpointError: see `cryobench.encoders.checkpoints.load_weights`.
        MissingLibraryError: adapters without the library that makes them.
    """

    def load(encoder: Encoder) -> None:
        weights = spec.encoder.weights
        if weights.kind != "published":
            return
        if weights_dir is None or weights.file is None or weights.layout is None:
            raise MissingWeightsError(
                f"Encoder '{spec.encoder.name}' needs its published weights {weights.file}; give --weights-dir."
            )
        load_weights(encoder, weights_dir / weights.file, weights.layout, weights.digest)

    model = make_model(spec, classes, load)
    return model.to(memory_format=torch.channels_last) if spec.protocol.channels_last else model


def make_model(
    spec: TrialSpec, classes: int, load: Callable[[Encoder], None] = lambda encoder: None
) -> SegmentationModel:
    """The model's modules, on torch's current device; ``load`` fills the encoder before anything is put upon it."""
    torch.manual_seed(stream_seed(spec.seed, "initialise", "encoder"))
    encoder = build(spec.encoder)
    load(encoder)
    torch.manual_seed(stream_seed(spec.seed, "initialise", "decoder"))
    protocol = spec.protocol
    decoder = make_decoder(encoder, spec.decoder, protocol.decoder_channels, protocol.decoder_dropout, classes)
    frozen_mode = "train" if "frozen_in_train_mode" in protocol.reference_errors else "eval"
    model = SegmentationModel(encoder, decoder, spec.trains_encoder, frozen_mode)
    if spec.regime.lora is not None and not spec.trains_encoder:
        torch.manual_seed(stream_seed(spec.seed, "initialise", "lora"))
        add_lora(encoder, spec.regime.lora.rank, spec.regime.lora.alpha)
        model.train()
    return model


def make_decoder(encoder: Encoder, kind: str, channels: int, dropout: float, classes: int) -> nn.Module:
    """The decoder of a trial: U-Net has its own, all others UPerNet, unless the regime asks for a linear layer."""
    if kind == "linear":
        return LinearDecoder(encoder.channels[-1], classes)
    if kind == "unet":
        return UNetDecoder(encoder.channels, classes)
    return UPerNet(encoder.channels, encoder.pyramid, channels, classes, dropout)
