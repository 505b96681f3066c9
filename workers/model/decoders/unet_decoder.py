"""The decoder half of the U-Net baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cryobench.encoders.unet import double_convolution


class UNetDecoder(nn.Module):
    """Transposed convolution (channels kept), zero padding to the skip's size, skip first, double convolution.

    For encoder widths 512 512 256 128 64 (deepest first) the double convolutions are 1024→256, 512→128, 256→64 and
    128→64, then a 1x1 convolution gives the classes.
    """

    def __init__(self, in_channels: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        below = in_channels[0]
        skips = in_channels[1:]
        for i, skip in enumerate(skips):
            out = skips[i + 1] if i + 1 < len(skips) else skip
            self.up.append(nn.ConvTranspose2d(below, below, 2, stride=2))
            self.merge.append(double_convolution(below + skip, out))
            below = out
        self.classify = nn.Conv2d(below, classes, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (B, classes, *size); ``size`` is the finest feature's own."""
        x = features[0]
        for up, merge, skip in zip(self.up, self.merge, features[1:], strict=True):
            x = up(x)
            high, wide = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
            x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
            x = merge(torch.cat([skip, x], dim=1))
        logits: Tensor = self.classify(x)
        return logits
