"""Vision transformers by timm: one class for every encoder that is a plain ViT.

Settings: ``model`` (a timm model name), ``taps`` (0-based blocks whose output is handed on), ``norm`` (``last``: the
final LayerNorm on the last tap; ``none``), and any of timm's own sizes (patch_size, embed_dim, depth, num_heads,
mlp_ratio) for other widths of the same architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cryobench.conf.errors import ConfigError, UnknownNameError
from cryobench.conf.schema import Modality
from cryobench.encoders.base import Encoder

_SIZES = {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"}
_OWN = {"model", "taps", "norm"}


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
        unknown = set(settings) - _SIZES - _OWN
        if unknown:
            raise UnknownNameError("setting of a timm_vit encoder", sorted(unknown)[0], _SIZES | _OWN)
        missing = _OWN - set(settings)
        if missing:
            raise ConfigError(f"A timm_vit encoder needs the settings {', '.join(sorted(missing))}.")
        model, taps = str(settings["model"]), tuple(int(tap) for tap in settings["taps"])
        if not timm.is_model(model):
            close = timm.list_models(f"{model.split('_patch')[0]}*")[:8]
            raise UnknownNameError("timm model", model, close or ["see timm.list_models('vit_*')"])
        if input_size is None:
            raise ConfigError("A timm_vit encoder needs input_size in pixels; 'tile' is for convolutional ones.")
        if settings["norm"] not in ("last", "none"):
            raise ConfigError(f"norm: expected 'last' or 'none', found {settings['norm']!r}.")
        vit = timm.create_model(
            model,
            pretrained=False,
            num_classes=0,
            img_size=input_size,
            in_chans=sum(len(names) for names in bands.values()),
            **{name: settings[name] for name in _SIZES & set(settings)},
        )
        if not taps or min(taps) < 0 or max(taps) >= len(vit.blocks):
            raise ConfigError(f"taps {list(taps)} are not blocks of {model}, which has 0 to {len(vit.blocks) - 1}.")
        return cls(vit, taps, settings["norm"] == "last")

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """Taps (B, embed_dim, H / patch, W / patch)."""
        parts = [inputs[m] for m in ("optical", "sar") if m in inputs]
        tokens = self.vit.patch_embed(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
        tokens = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(tokens)))
        features = []
        for i, block in enumerate(self.vit.blocks):
            tokens = block(tokens)
            if i in self.taps:
                features.append(tokens)
        features[-1] = self.vit.norm(features[-1])
        return [self._map(f) for f in features]

    def _map(self, tokens: Tensor) -> Tensor:
        height, width = self.vit.patch_embed.grid_size
        patches = tokens[:, self.vit.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(len(patches), -1, height, width)

    @staticmethod
    def filter_checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published files name tensors as timm does."""
        return {f"vit.{name}": tensor for name, tensor in state.items()}
