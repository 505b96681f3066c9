"""Encoder and decoder of one trial as one module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from cryobench.conf.errors import MissingWeightsError
from cryobench.conf.streams import stream_seed
from cryobench.conf.terms import Modality
from cryobench.conf.trial import TrialSpec
from cryobench.encoders.base import Encoder
from cryobench.encoders.checkpoints import load_weights
from cryobench.encoders.registry import build
from cryobench.workers.decoders.unet import UNetDecoder
from cryobench.workers.decoders.upernet import UPerNet


class SegmentationModel(nn.Module):
    """An encoder, frozen or not, under a decoder.

    A frozen encoder stays in eval mode and runs without gradients, whatever mode the model is put into.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module, train_encoder: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.train_encoder = encoder, decoder, train_encoder
        encoder.requires_grad_(train_encoder)
        self.train()

    def train(self, mode: bool = True) -> SegmentationModel:
        """Training or eval mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        self.encoder.train(mode and self.train_encoder)
        return self

    def forward(self, inputs: dict[Modality, Tensor]) -> Tensor:
        """Logits (B, classes, H, W) at the inputs' size."""
        size = next(iter(inputs.values())).shape[-2:]
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            features = self.encoder(inputs)
        logits: Tensor = self.decoder(features, (int(size[0]), int(size[1])))
        return logits

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the optimizer updates, in a fixed order."""
        return (p for p in self.parameters() if p.requires_grad)

    def trained_state(self) -> dict[str, Tensor]:
        """What training changes: without a frozen encoder, which comes from its file or the seed."""
        state = self.state_dict()
        return state if self.train_encoder else {k: v for k, v in state.items() if not k.startswith("encoder.")}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `trained_state`."""
        expected = self.trained_state().keys()
        if expected != state.keys():
            raise KeyError(f"expected {len(expected)} tensors, found {len(state)}")
        self.load_state_dict(state, strict=self.train_encoder)


def build_model(spec: TrialSpec, classes: int, weights_dir: Path | None) -> SegmentationModel:
    """The model of a trial, initialised from the trial's own streams and the published weights, on the CPU.

    Raises:
        MissingWeightsError, BadCheckpointError: see `cryobench.encoders.checkpoints.load_weights`.
    """
    torch.manual_seed(stream_seed(spec.seed, "initialise", "encoder"))
    encoder = build(spec.encoder)
    weights = spec.encoder.weights
    if weights.kind == "published":
        if weights_dir is None or weights.file is None or weights.layout is None:
            raise MissingWeightsError(
                f"Encoder '{spec.encoder.name}' needs its published weights {weights.file}; give --weights-dir."
            )
        load_weights(encoder, weights_dir / weights.file, weights.layout, weights.digest)
    torch.manual_seed(stream_seed(spec.seed, "initialise", "decoder"))
    protocol = spec.protocol
    decoder = make_decoder(encoder, spec.encoder.decoder, protocol.decoder_channels, protocol.decoder_dropout, classes)
    return SegmentationModel(encoder, decoder, spec.trains_encoder)


def make_decoder(encoder: Encoder, kind: str, channels: int, dropout: float, classes: int) -> nn.Module:
    """The decoder that belongs to an encoder: U-Net has its own, all others UPerNet."""
    if kind == "unet":
        return UNetDecoder(encoder.channels, classes)
    return UPerNet(encoder.channels, encoder.pyramid, channels, classes, dropout)
