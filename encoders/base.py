"""The one interface of all encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cryobench.conf.errors import ConfigError, UnknownNameError
from cryobench.conf.terms import Modality

#: In the order in which they are stacked.
MODALITIES: tuple[Modality, ...] = ("optical", "sar")


class Encoder(nn.Module, ABC):
    """Maps normalised inputs to the feature maps that a decoder reads.

    Subclasses set ``channels`` (of each tap) and ``pyramid`` (whether taps differ in resolution), and may define
    ``filter_checkpoint``. Nothing after the last tap may be computed.
    """

    channels: tuple[int, ...]
    pyramid: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> Encoder:
        """An encoder with freshly initialised weights.

        Args:
            bands: names of the input channels, a modality.
            input_size: side of its square input in pixels; None where the data set's tile decides.
            settings: the ``settings`` of its YAML file.
        """

    @abstractmethod
    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """Feature maps (B, channels[i], h_i, w_i) from inputs (B, bands, H, W) by modality."""

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename a published file's tensors to this encoder's names; the default changes nothing."""
        return state


def stacked(inputs: dict[Modality, Tensor]) -> Tensor:
    """All modalities along channels, optical first: (B, bands, H, W)."""
    parts = [inputs[modality] for modality in MODALITIES if modality in inputs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def tapped(
    blocks: Iterable[Callable[[Tensor], Tensor]], tokens: Tensor, taps: Sequence[int], norm: nn.Module | None = None
) -> list[Tensor]:
    """Tokens after each block in ``taps``; ``norm``, if given, is applied to the last of them alone."""
    features = []
    for i, block in enumerate(blocks):
        tokens = block(tokens)
        if i in taps:
            features.append(tokens)
    if norm is not None:
        features[-1] = norm(features[-1])
    return features


def patch_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens (B, h * w, C), row by row, to a feature map (B, C, h, w)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def required_size(input_size: int | None, family: str) -> int:
    """The input's side in pixels; an error for a family whose tokens cannot follow the tile's size."""
    if input_size is None:
        raise ConfigError(f"A {family} encoder needs input_size in pixels; 'tile' is for convolutional ones.")
    return input_size


def settings_of(
    settings: Mapping[str, Any], family: str, known: set[str], needed: set[str] | None = None
) -> dict[str, Any]:
    """A copy of ``settings``, checked: all ``needed`` (by default all ``known``) are there, and no others."""
    unknown = sorted(set(settings) - known)
    if unknown:
        raise UnknownNameError(f"setting of a {family} encoder", unknown[0], known)
    missing = sorted((known if needed is None else needed) - set(settings))
    if missing:
        raise ConfigError(f"A {family} encoder needs the settings {', '.join(missing)}.")
    return dict(settings)
