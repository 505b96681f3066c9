"""The encoder half of the U-Net baseline (Ronneberger, Fischer and Brox 2015, with batch norm and padding)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cryobench.conf.errors import ConfigError
from cryobench.conf.terms import Modality
from cryobench.encoders.base import Encoder


class UNetEncoder(Encoder):
    """Double convolutions at the widths of ``topology``, the last width twice, with max-pooling between.

    Features deepest first: (B, topology[-1], H/16, W/16), … (B, topology[0], H, W) for four widths.
    """

    pyramid = True

    def __init__(self, in_channels: int, topology: tuple[int, ...]) -> None:
        super().__init__()
        widths = (*topology, topology[-1])
        self.stages = nn.ModuleList(
            double_convolution(a, b) for a, b in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.channels = widths[::-1]

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> UNetEncoder:
        """See `Encoder.build`."""
        topology = settings.get("topology")
        if set(settings) != {"topology"} or not isinstance(topology, tuple | list) or len(topology) < 2:
            raise ConfigError(
                f"A unet encoder needs one setting, topology: two or more widths; found {dict(settings)}."
            )
        return cls(sum(len(names) for names in bands.values()), tuple(int(width) for width in topology))

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """Five feature maps for four widths, deepest first."""
        x = torch.cat([inputs[m] for m in ("optical", "sar") if m in inputs], dim=1)
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(self.pool(x) if i else x)
            features.append(x)
        return features[::-1]

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reference's names: ``in_conv.conv.conv.N`` and ``encoder.down_seq.downI.mpconv.1.conv.N``."""
        renamed = {}
        for name, tensor in state.items():
            short = re.sub(r"^in_conv\.conv\.conv\.", "stages.0.", name)
            renamed[re.sub(r"^encoder\.down_seq\.down(\d+)\.mpconv\.1\.conv\.", r"stages.\1.", short)] = tensor
        return renamed


def double_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution with bias, batch norm, ReLU, twice."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
