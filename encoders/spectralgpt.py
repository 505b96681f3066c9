"""SpectralGPT (Hong et al. 2024): tokens of space and of groups of three neighbouring bands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cryobench.conf.errors import ConfigError
from cryobench.conf.terms import Modality
from cryobench.encoders.base import Encoder, required_size, settings_of, stacked, tapped

_SETTINGS = {"taps", "patch_size", "band_group", "embed_dim", "depth", "num_heads", "drop_path"}


class SpectralGPT(Encoder):
    """Spectral groups side by side along channels: taps (B, groups * embed_dim, H / patch, W / patch)."""

    def __init__(
        self,
        bands: int,
        side: int,
        taps: tuple[int, ...],
        patch_size: int,
        band_group: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.taps, self.groups = taps, bands // band_group
        self.channels = (self.groups * embed_dim,) * len(taps)
        kernel = (band_group, patch_size, patch_size)
        self.patch_embed = nn.Conv3d(1, embed_dim, kernel, stride=kernel)
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, (side // patch_size) ** 2, embed_dim))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.groups, embed_dim))
        nn.init.trunc_normal_(self.pos_embed_spatial, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_temporal, std=0.02)
        rates = np.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, drop_path=rates[i], norm_layer=nn.LayerNorm)
            for i in range(max(taps) + 1)
        )

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> SpectralGPT:
        """See `Encoder.build`."""
        chosen = settings_of(settings, "spectralgpt", _SETTINGS)
        count = sum(len(names) for names in bands.values())
        if count % chosen["band_group"]:
            raise ConfigError(f"{count} bands do not fall into groups of {chosen['band_group']}.")
        taps = tuple(chosen.pop("taps"))
        return cls(count, required_size(input_size, "spectralgpt"), taps, **chosen)

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """See the class."""
        x = self.patch_embed(stacked(inputs)[:, None])
        batch, width, groups, height, columns = x.shape
        position = self.pos_embed_spatial.repeat(1, groups, 1)
        position = position + self.pos_embed_temporal.repeat_interleave(height * columns, dim=1)
        tokens = x.flatten(2).transpose(1, 2) + position
        features = []
        for tap in tapped(self.blocks, tokens, self.taps):
            cube = tap.reshape(batch, groups, height, columns, width)
            features.append(cube.permute(0, 1, 4, 2, 3).reshape(batch, groups * width, height, columns))
        return features

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Separate q, k and v become timm's qkv; position embeddings of another size are interpolated."""
        renamed: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if ".attn.q." in name and name.replace(".q.", ".k.") in state and name.replace(".q.", ".v.") in state:
                parts = [state[name.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
                renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
            elif not (".attn.k." in name or ".attn.v." in name):
                renamed[name.replace("patch_embed.proj.", "patch_embed.")] = tensor
        spatial, wanted = renamed.get("pos_embed_spatial"), self.pos_embed_spatial.shape[1]
        if spatial is not None and spatial.ndim == 3 and spatial.shape[1] != wanted:
            old, new = int(spatial.shape[1] ** 0.5), int(wanted**0.5)
            if old * old == spatial.shape[1]:
                grid = spatial.reshape(1, old, old, -1).permute(0, 3, 1, 2)
                grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
                renamed["pos_embed_spatial"] = grid.permute(0, 2, 3, 1).reshape(1, wanted, -1)
        return renamed
