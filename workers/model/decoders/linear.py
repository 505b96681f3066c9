"""A linear probe: one linear layer on the last feature map, its logits enlarged to the input's size."""

from __future__ import annotations

from torch import Tensor, nn

from cryobench.workers.model.resampling import resize


class LinearDecoder(nn.Module):
    """From an encoder's last tap (B, channels, h, w) to logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits (B, classes, *size)."""
        return resize(self.classifier(features[-1]), size)
