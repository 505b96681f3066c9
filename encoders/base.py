"""The one interface of all encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from cryobench.conf.schema import Modality


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

    @staticmethod
    def filter_checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename a published file's tensors to this encoder's names; the default changes nothing."""
        return state
