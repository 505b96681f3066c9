"""From raw integers to an encoder's input, on the device: normalise, pick bands, fill absent ones, pad."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cryobench.conf.errors import CorruptDataError
from cryobench.conf.terms import IGNORE, Group, Modality
from cryobench.conf.trial import Feed
from cryobench.datasets.store.store_info import StoreInfo


class Preprocess(nn.Module):
    """Normalises by the data set's statistics and lays channels out as ``feed`` says.

    ``forward`` takes raw groups (B, C, h, w) and gives, a modality, float32 (B, bands, H, W), where H and W are at
    least ``size``: smaller crops are padded with zero (the mean) at the bottom and right.
    """

    def __init__(self, info: StoreInfo, feed: Feed, statistics: str, size: int | None) -> None:
        super().__init__()
        self.size = size
        self.groups: tuple[Group, ...] = tuple(
            sorted({source.group for sources in feed.inputs.values() for source in sources if source})
        )
        start: dict[Group, int] = {}
        width = 0
        for group in self.groups:
            start[group] = width
            width += len(info.groups[group].bands)
            own, published = info.groups[group].statistics, info.groups[group].published
            if statistics == "published" and published is None:
                raise CorruptDataError(
                    f"Store '{info.dataset.name}' has no published statistics. Set statistics=training, or give "
                    "published_statistics in the data set's YAML and prepare it again."
                )
            mean, std = list(own.mean), list(own.std)
            if statistics == "published" and published is not None:
                mean = [o if p is None else p for p, o in zip(published.mean, own.mean, strict=True)]
                std = [o if p is None else p for p, o in zip(published.std, own.std, strict=True)]
            # A constant channel carries nothing; dividing by one keeps it at zero.
            std = [value if value > 0 else 1.0 for value in std]
            self.register_buffer(f"mean_{group}", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
            self.register_buffer(f"std_{group}", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.modalities: tuple[Modality, ...] = tuple(feed.inputs)
        for modality, sources in feed.inputs.items():
            index = [start[s.group] + s.index if s else width for s in sources]
            self.register_buffer(f"index_{modality}", torch.tensor(index), persistent=False)

    def forward(self, groups: dict[str, Tensor]) -> dict[Modality, Tensor]:
        """Raw groups to normalised, padded inputs by modality."""
        parts = [(groups[g].float() - self.get_buffer(f"mean_{g}")) / self.get_buffer(f"std_{g}") for g in self.groups]
        parts.append(torch.zeros_like(parts[0][:, :1]))
        stacked = pad_to(torch.cat(parts, dim=1), self.size, 0.0)
        return {m: stacked.index_select(1, self.get_buffer(f"index_{m}")) for m in self.modalities}

    def labels(self, mask: Tensor) -> Tensor:
        """Masks (B, h, w) uint8 to int64 class indices, padded with the ignore index."""
        return pad_to(mask.long(), self.size, IGNORE)


def pad_to(values: Tensor, size: int | None, fill: float) -> Tensor:
    """Pad the last two axes at their end to at least ``size``."""
    if size is None:
        return values
    height, width = values.shape[-2:]
    if height >= size and width >= size:
        return values
    return F.pad(values, (0, max(0, size - width), 0, max(0, size - height)), value=fill)
