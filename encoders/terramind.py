"""TerraMind v1 (Jakubik et al. 2025), encoder only: one patch embedding a modality, blocks without biases.

Written here on timm's attention rather than taken from terratorch, which would bring some forty packages for these
hundred lines and deviates a little more from the golden reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from cryobench.conf.terms import Modality
from cryobench.encoders.base import MODALITIES, Encoder, patch_map, required_size, settings_of, tapped

_NAMES: dict[Modality, str] = {"optical": "untok_sen2l2a@224", "sar": "untok_sen1grd@224"}


class TerraMind(Encoder):
    """Taps (B, dim, H / patch, W / patch); modalities share the blocks, and their tokens are averaged at the taps."""

    def __init__(
        self,
        bands: Mapping[Modality, tuple[str, ...]],
        side: int,
        taps: tuple[int, ...],
        dim: int,
        depth: int,
        num_heads: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.taps, self.patch_size, self.grid = taps, patch_size, (side // patch_size,) * 2
        self.channels = (dim,) * len(taps)
        self.embeddings = nn.ModuleDict(
            {
                m: _Embedding(len(bands[m]), self.grid[0] * self.grid[1], dim, patch_size)
                for m in MODALITIES
                if m in bands
            }
        )
        self.blocks = nn.ModuleList(_Block(dim, num_heads) for _ in range(max(taps) + 1))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> TerraMind:
        """See `Encoder.build`."""
        chosen = settings_of(settings, "terramind", {"taps", "dim", "depth", "num_heads", "patch_size"})
        taps = tuple(chosen.pop("taps"))
        return cls(bands, required_size(input_size, "terramind"), taps, **chosen)

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """See the class."""
        parts = [self.embeddings[m](inputs[m]) for m in self.embeddings]  # type: ignore[index]
        tokens = torch.cat(parts, dim=1)
        features = tapped(self.blocks, tokens, self.taps, self.norm)
        averaged = [f.reshape(len(f), len(parts), -1, f.shape[-1]).mean(dim=1) for f in features]
        return [patch_map(f, self.grid) for f in averaged]

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """From the published names; modalities that are not fed keep theirs and count as unused."""
        names = {f"encoder_embeddings.{_NAMES[m]}.": f"embeddings.{m}." for m in MODALITIES if m in self.embeddings}
        names |= {"encoder.": "blocks.", "encoder_norm.": "norm."}
        renamed = {}
        for name, tensor in state.items():
            start = next((old for old in names if name.startswith(old)), "")
            renamed[names.get(start, "") + name.removeprefix(start)] = tensor
        return renamed


class _Embedding(nn.Module):
    def __init__(self, channels: int, tokens: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(channels * patch_size**2, dim, bias=False)
        self.mod_emb = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_emb = nn.Parameter(0.02 * torch.randn(1, tokens, dim))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to tokens (B, N, dim); within a patch, rows, then columns, then channels."""
        size = self.patch_size
        batch, channels, height, width = image.shape
        cut = image.reshape(batch, channels, height // size, size, width // size, size).permute(0, 2, 4, 3, 5, 1)
        projected: Tensor = self.proj(cut.reshape(batch, -1, channels * size**2))
        return projected + self.mod_emb + self.pos_emb


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias=False, proj_bias=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _GatedMlp(dim, int(2 * 4 * dim / 3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _GatedMlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.fc3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.silu(self.fc1(x)) * self.fc3(x))
        return out
