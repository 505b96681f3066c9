"""Vision transformers by timm: one class for every encoder that is a plain ViT.

Settings: ``model`` (a timm model name), ``taps`` (0-based blocks whose output is handed on), ``norm`` (``last``: the
final LayerNorm on the last tap; ``none``), ``qkv_bias`` (true unless it says false), and any of timm's own sizes
(patch_size, embed_dim, depth, num_heads, mlp_ratio) for other widths of the same architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from cryobench.conf.errors import ConfigError, UnknownNameError
from cryobench.conf.terms import Modality
from cryobench.encoders.base import Encoder, patch_map, required_size, settings_of, stacked, tapped
from cryobench.encoders.sincos import sincos_1d, sincos_2d

_SIZES = {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"}
_NEEDED = {"model", "taps", "norm"}
_OWN = _NEEDED | {"qkv_bias"}


class TimmVit(Encoder):
    """A ViT whose blocks are tapped; modalities are stacked along channels, optical first."""

    def __init__(self, vit: Any, taps: tuple[int, ...], norm_last: bool) -> None:
        super().__init__()
        self.vit: Any = vit
        self.taps = taps
        # Blocks behind the last tap are never read, so they are not there: no work, no memory, no unused gradients.
        vit.blocks = vit.blocks[: max(taps) + 1]
        vit.norm = vit.norm if norm_last else nn.Identity()
        self.channels = (vit.embed_dim,) * len(taps)

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> TimmVit:
        """See `Encoder.build`."""
        settings = settings_of(settings, "timm_vit", _SIZES | _OWN, needed=_NEEDED)
        model, taps = str(settings["model"]), tuple(int(tap) for tap in settings["taps"])
        if not timm.is_model(model):
            close = timm.list_models(f"{model.split('_patch')[0]}*")[:8]
            raise UnknownNameError("timm model", model, close or ["see timm.list_models('vit_*')"])
        if settings["norm"] not in ("last", "none"):
            raise ConfigError(f"norm: expected 'last' or 'none', found {settings['norm']!r}.")
        vit = timm.create_model(
            model,
            pretrained=False,
            num_classes=0,
            img_size=required_size(input_size, "timm_vit"),
            in_chans=sum(len(names) for names in bands.values()),
            **{name: settings[name] for name in (_SIZES | {"qkv_bias"}) & set(settings)},
        )
        if not taps or min(taps) < 0 or max(taps) >= len(vit.blocks):
            raise ConfigError(f"taps {list(taps)} are not blocks of {model}, which has 0 to {len(vit.blocks) - 1}.")
        return cls(vit, taps, settings["norm"] == "last")

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """Taps (B, embed_dim, H / patch, W / patch)."""
        tokens = self.vit.patch_embed(stacked(inputs))
        tokens = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(tokens)))
        features = tapped(self.vit.blocks, tokens, self.taps, self.vit.norm)
        grid, prefix = self.vit.patch_embed.grid_size, self.vit.num_prefix_tokens
        return [patch_map(f[:, prefix:], grid) for f in features]

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published files name tensors as timm does; those of biases that were asked away are left out."""
        dropped = ".attn.qkv.bias" if self.vit.blocks[0].attn.qkv.bias is None else None
        return {f"vit.{n}": tensor for n, tensor in state.items() if not (dropped and n.endswith(dropped))}


class ClipVit(TimmVit):
    """The image tower of an OpenCLIP model (RemoteCLIP), renamed by timm's own filter."""

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """From OpenCLIP's names."""
        visual = {f"visual.{name}": tensor for name, tensor in state.items()}
        return super().filter_checkpoint(checkpoint_filter_fn(visual, self.vit))


class Prithvi(TimmVit):
    """Prithvi v1 on a single frame: its 3-D patch embedding has depth one, so a 2-D one is the same."""

    def __init__(self, vit: Any, taps: tuple[int, ...], norm_last: bool) -> None:
        super().__init__(vit, taps, norm_last)
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5  # PyTorch's default, not timm's 1e-6
        width = vit.embed_dim
        height, columns = vit.patch_embed.grid_size
        # Frame 0 of the published sin-cos embedding: 6/16 of the width for columns, 6/16 for rows, 4/16 for time.
        spatial, time = width // 16 * 6, width // 16 * 4
        rows = torch.arange(height).repeat_interleave(columns)
        grid = torch.cat(
            [
                sincos_1d(torch.arange(columns).repeat(height), spatial),
                sincos_1d(rows, spatial),
                sincos_1d(torch.zeros(height * columns), time),
            ],
            dim=-1,
        )
        vit.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, width), grid])[None])

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drops the depth axis, and a position embedding of several frames: the sin-cos one stays."""
        filtered = dict(state)
        kernel, position = filtered.get("patch_embed.proj.weight"), filtered.get("pos_embed")
        if kernel is not None and kernel.ndim == 5 and kernel.shape[2] == 1:
            filtered["patch_embed.proj.weight"] = kernel.squeeze(2)
        if position is not None and position.shape[1] > self.vit.pos_embed.shape[1]:
            del filtered["pos_embed"]
        return super().filter_checkpoint(filtered)


class ScaleMae(TimmVit):
    """A ViT whose position embedding is scaled by the ground sampling distance (1.0: the published input_res)."""

    def __init__(self, vit: Any, taps: tuple[int, ...], norm_last: bool) -> None:
        super().__init__(vit, taps, norm_last)
        height, width = vit.patch_embed.grid_size
        position = sincos_2d(height, width, vit.embed_dim, resolution=1.0)
        del vit.pos_embed
        vit.register_buffer("pos_embed", position, persistent=False)
