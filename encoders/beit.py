"""BEiT-type transformers by timm with one relative position bias shared by all blocks (S12-Data2Vec)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from cryobench.conf.terms import Modality
from cryobench.encoders.base import Encoder, patch_map, required_size, settings_of, stacked, tapped

_SETTINGS = {"taps", "patch_size", "embed_dim", "depth", "num_heads", "init_values"}


class TimmBeit(Encoder):
    """Taps of a BEiT without absolute positions; keys have no bias, as in the published file."""

    def __init__(self, beit: Any, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.beit: Any = beit
        self.taps = taps
        beit.blocks = beit.blocks[: max(taps) + 1]
        beit.norm = nn.Identity()
        self.channels = (beit.embed_dim,) * len(taps)

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> TimmBeit:
        """See `Encoder.build`."""
        chosen = settings_of(settings, "timm_beit", _SETTINGS)
        beit = Beit(
            img_size=required_size(input_size, "timm_beit"),
            in_chans=sum(len(names) for names in bands.values()),
            num_classes=0,
            use_abs_pos_emb=False,
            use_shared_rel_pos_bias=True,
            use_fc_norm=False,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            **{name: value for name, value in chosen.items() if name != "taps"},
        )
        return cls(beit, tuple(chosen["taps"]))

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """Taps (B, embed_dim, H / patch, W / patch)."""
        beit = self.beit
        tokens = beit.patch_embed(stacked(inputs))
        tokens = torch.cat([beit.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        bias = beit.rel_pos_bias()
        blocks = [partial(block, shared_rel_pos_bias=bias) for block in beit.blocks]
        return [patch_map(f[:, 1:], beit.patch_embed.grid_size) for f in tapped(blocks, tokens, self.taps)]

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published file names tensors as timm does."""
        return {f"beit.{name}": tensor for name, tensor in state.items()}
