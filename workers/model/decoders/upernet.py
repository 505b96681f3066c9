"""UPerNet (Xiao et al. 2018) as the reference runs it: feature-to-pyramid neck, pooling pyramid, feature pyramid.

Module names are the reference's, so that its golden weights load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cryobench.workers.model.resampling import AveragePool, resize

_POOL_SCALES = (1, 2, 3, 6)
_NECK_SCALES = (4, 2, 1, 0.5)


class UPerNet(nn.Module):
    """From an encoder's taps to logits.

    Args:
        in_channels: channels of each tap.
        pyramid: whether the taps already differ in resolution; else the neck rescales them by 4, 2, 1 and 1/2, a
            single tap by 4.
        channels: width of the decoder (512 in the protocol).
        classes: number of classes.
        dropout: share of channels dropped before the classifier in training.
    """

    def __init__(
        self, in_channels: tuple[int, ...], pyramid: bool, channels: int, classes: int, dropout: float
    ) -> None:
        super().__init__()
        count = len(in_channels)
        scales = [1.0 if pyramid else _NECK_SCALES[i * 4 // count] for i in range(count)]
        self.neck = Neck(in_channels, scales)
        last = in_channels[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(AveragePool(scale), *_unit(last, channels, 1)) for scale in _POOL_SCALES
        )
        self.bottleneck = _unit(last + len(_POOL_SCALES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(_unit(c, channels, 1) for c in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(_unit(channels, channels, 3) for _ in in_channels[:-1])
        self.fpn_bottleneck = _unit(count * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (B, classes, *size)."""
        features = self.neck(features)
        laterals = [conv(f) for conv, f in zip(self.lateral_convs, features, strict=False)]
        top = features[-1]
        pooled = [resize(module(top), top.shape[-2:]) for module in self.psp_modules]
        laterals.append(self.bottleneck(torch.cat([top, *pooled], dim=1)))
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1].shape[-2:])
        levels = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)] + [laterals[-1]]
        finest = levels[0].shape[-2:]
        fused = self.fpn_bottleneck(torch.cat([resize(x, finest) for x in levels], dim=1))
        return resize(self.conv_seg(self.dropout(fused)), size)


class Neck(nn.Module):
    """Rescales each tap by its own factor: transposed convolutions up, max-pooling down."""

    def __init__(self, channels: tuple[int, ...], scales: list[float]) -> None:
        super().__init__()
        self.ops = nn.ModuleList(_rescale(c, s) for c, s in zip(channels, scales, strict=True))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Feature maps at their new resolutions, channels kept."""
        return [op(f) for op, f in zip(self.ops, features, strict=True)]


def _rescale(channels: int, scale: float) -> nn.Module:
    if scale == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
        )
    if scale == 2:
        return nn.Sequential(nn.ConvTranspose2d(channels, channels, 2, stride=2))
    return nn.Identity() if scale == 1 else nn.MaxPool2d(2, 2)


def _unit(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
