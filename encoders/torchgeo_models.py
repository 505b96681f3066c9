"""CROMA and DOFA by torchgeo (the extra ``gfm``), tapped at their blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cryobench.conf.errors import ConfigError, MissingLibraryError
from cryobench.conf.terms import Modality
from cryobench.encoders.base import Encoder, patch_map, required_size, settings_of, stacked, tapped
from cryobench.encoders.wavelengths import MICROMETRES, RADAR_MICROMETRES, wavelength

try:
    from torchgeo.models import CROMA, DOFA
except ImportError as error:
    raise MissingLibraryError(
        f"This encoder is torchgeo's, which cannot be imported ({error}). Install it with: "
        "pip install 'cryobench[gfm]'."
    ) from error


class Dofa(Encoder):
    """A ViT whose patch embedding is generated from the wavelengths of its bands (Xiong et al. 2024)."""

    def __init__(self, dofa: Any, waves: list[float], taps: tuple[int, ...]) -> None:
        super().__init__()
        self.dofa: Any = dofa
        self.taps = taps
        dofa.blocks = dofa.blocks[: max(taps) + 1]
        self.channels = (dofa.embed_dim,) * len(taps)
        self.register_buffer("waves", torch.tensor(waves), persistent=False)

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> Dofa:
        """See `Encoder.build`."""
        names = {"taps", "patch_size", "embed_dim", "depth", "num_heads"}
        chosen = settings_of(settings, "dofa", names)
        taps = tuple(chosen.pop("taps"))
        size = required_size(input_size, "dofa")
        dofa = DOFA(img_size=size, num_classes=0, global_pool=False, **chosen)
        waves = [wavelength(name, MICROMETRES) for name in bands.get("optical", ())]
        waves += [RADAR_MICROMETRES] * len(bands.get("sar", ()))
        return cls(dofa, waves, taps)

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """Taps (B, embed_dim, H / patch, W / patch); all modalities' bands are one list of wavelengths."""
        dofa = self.dofa
        image = stacked(inputs)
        tokens, _ = dofa.patch_embed(image, self.get_buffer("waves"))
        tokens = torch.cat([dofa.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + dofa.pos_embed
        grid = (image.shape[-2] // dofa.patch_size, image.shape[-1] // dofa.patch_size)
        return [patch_map(f[:, 1:], grid) for f in tapped(dofa.blocks, tokens, self.taps, dofa.norm)]

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Torchgeo names tensors as the published file does."""
        return {f"dofa.{name}": tensor for name, tensor in state.items()}


class Croma(Encoder):
    """Radar and optical towers with 2-D ALiBi, and a cross-attention encoder over both (Fuller et al. 2023).

    One modality: its tower, cut behind the last tap. Both: both towers whole, and the cross-attention encoder tapped.
    """

    def __init__(self, croma: Any, modalities: tuple[Modality, ...], side: int, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.taps, self.grid = taps, (side // 8, side // 8)
        self.channels = (croma.encoder_dim,) * len(taps)
        self.towers = nn.ModuleDict({m: croma.s2_encoder if m == "optical" else croma.s1_encoder for m in modalities})
        self.cross: Any = croma.joint_encoder if len(modalities) == 2 else None
        tapped: Any = self.cross if self.cross is not None else self.towers[modalities[0]].transformer
        if max(taps) >= len(tapped.layers):
            raise ConfigError(f"taps {list(taps)} are not blocks of this encoder: 0 to {len(tapped.layers) - 1}.")
        tapped.layers = tapped.layers[: max(taps) + 1]
        self.register_buffer("bias", croma.attn_bias, persistent=False)

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> Croma:
        """See `Encoder.build`."""
        chosen = settings_of(settings, "croma", {"taps", "encoder_dim", "encoder_depth", "num_heads"})
        taps = tuple(chosen.pop("taps"))
        side = required_size(input_size, "croma")
        modalities = tuple(m for m in ("optical", "sar") if m in bands)
        croma = CROMA(modalities=list(modalities), image_size=side, **chosen)
        return cls(croma, modalities, side, taps)  # type: ignore[arg-type]

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """Taps (B, encoder_dim, H / 8, W / 8)."""
        bias = self.get_buffer("bias")
        if self.cross is None:
            ((modality, tower),) = self.towers.items()
            return self._tapped(tower.transformer, _patches(tower, inputs[modality]), bias)  # type: ignore[index]
        optical, radar = (self.towers[m](inputs[m], bias) for m in ("optical", "sar"))
        return self._tapped(self.cross, radar, bias, context=optical)

    def _tapped(self, transformer: Any, tokens: Tensor, bias: Tensor, context: Tensor | None = None) -> list[Tensor]:
        def block(layers: Any, x: Tensor) -> Tensor:
            attention, *cross, feed_forward = layers
            x = attention(x, bias) + x
            for layer in cross:
                x = layer(x, context, bias) + x
            out: Tensor = feed_forward(x) + x
            return out

        blocks = [partial(block, layers) for layers in transformer.layers]
        return [patch_map(f, self.grid) for f in tapped(blocks, tokens, self.taps, transformer.norm_out)]

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published file's towers and joint encoder under this class's names."""
        names = {"s2_encoder.": "towers.optical.", "s1_encoder.": "towers.sar.", "joint_encoder.": "cross."}
        renamed = {}
        for name, tensor in state.items():
            first = name.partition(".")[0] + "."
            renamed[names.get(first, first) + name.removeprefix(first)] = tensor
        return renamed


def _patches(tower: Any, image: Tensor) -> Tensor:
    """Tokens of an image as torchgeo's tower makes them: patches of 8 x 8 pixels, channel by channel."""
    batch, channels, height, width = image.shape
    cut = image.reshape(batch, channels, height // 8, 8, width // 8, 8).permute(0, 2, 4, 1, 3, 5)
    tokens: Tensor = tower.linear_input(cut.reshape(batch, -1, channels * 64))
    return tokens
