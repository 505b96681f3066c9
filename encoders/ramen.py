"""RAMEN: any bands at any resolution, projected pixel by pixel from their wavelengths and resampled to one scale."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cryobench.conf.terms import SAR_NAMES, Modality
from cryobench.encoders.base import Encoder, patch_map, settings_of, tapped
from cryobench.encoders.sincos import sincos_1d, sincos_2d
from cryobench.encoders.wavelengths import NANOMETRES, wavelength

_SETTINGS = {"taps", "embed_dim", "depth", "num_heads", "input_res", "res"}
_RADAR = tuple(f"{orbit}_{name}" for orbit in ("asc", "des") for name in ("vv", "vh", "hv", "hh"))


class Ramen(Encoder):
    """Taps (B, modalities * embed_dim, h, w), h and w being the input's size times input_res / res.

    Settings: ``input_res`` is the ground sampling distance of the input in metres, ``res`` that of the tokens.
    """

    def __init__(
        self,
        bands: Mapping[Modality, tuple[str, ...]],
        taps: tuple[int, ...],
        embed_dim: int,
        depth: int,
        num_heads: int,
        input_res: float,
        res: float,
    ) -> None:
        super().__init__()
        self.bands, self.taps, self.input_res, self.res = dict(bands), taps, float(input_res), float(res)
        self.width = embed_dim
        self.channels = (embed_dim * len(bands),) * len(taps)
        if "optical" in bands:
            self.spectral_projector = _Projector(embed_dim)
        if "sar" in bands:
            self.radar_projector = _Radar(embed_dim)
        self.resampler = _Resampler(embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.in_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(max(taps) + 1)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        nn.init.normal_(self.cls_token, std=0.02)

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> Ramen:
        """See `Encoder.build`."""
        chosen = settings_of(settings, "ramen", _SETTINGS)
        return cls(bands, tuple(chosen.pop("taps")), **chosen)

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """See the class."""
        side = next(iter(inputs.values())).shape[-2:]
        size = (round(side[0] * self.input_res / self.res), round(side[1] * self.input_res / self.res))
        position = sincos_2d(*size, self.width, self.res).to(self.cls_token)
        parts = []
        for modality, names in self.bands.items():
            maps = torch.einsum("bchw,cd->bdhw", inputs[modality], self._projection(modality, names))
            tokens = self.resampler(maps, size, self.input_res / self.res).flatten(2).transpose(1, 2)
            parts.append(self.in_norm(tokens) + position[:, 1:])
        cls = (self.cls_token + position[:, :1]).expand(len(parts[0]), -1, -1)
        tokens = torch.cat([cls, *parts], dim=1)
        features = []
        for tap in tapped(self.blocks, tokens, self.taps, self.norm):
            each = torch.split(tap[:, 1:], size[0] * size[1], dim=1)
            features.append(torch.cat([patch_map(part, size) for part in each], dim=1))
        return features

    def _projection(self, modality: Modality, names: tuple[str, ...]) -> Tensor:
        """(bands, embed_dim): what a value of each band is multiplied by."""
        if modality == "sar":
            return cast(Tensor, self.radar_projector([name.lower() for name in names]))
        waves = torch.tensor([wavelength(name, NANOMETRES) for name in names], device=self.cls_token.device)
        return cast(Tensor, self.spectral_projector(sincos_1d(waves, self.width)))

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published file nests the encoder under one of several prefixes."""
        for prefix in ("model.encoder.", "encoder."):
            if any(name.startswith(prefix) for name in state):
                return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        return state


class _Projector(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.LayerNorm(width)
        )

    def forward(self, encoding: Tensor) -> Tensor:
        return cast(Tensor, self.mlp(encoding))


class _Radar(_Projector):
    """Polarisations are learned vectors; without an orbit in the name, of ascending passes."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        for name in _RADAR:
            self.register_parameter(f"{name}_param", nn.Parameter(0.02 * torch.randn(width)))

    def forward(self, names: list[str]) -> Tensor:  # type: ignore[override]
        known = {name.lower() for name in SAR_NAMES}
        vectors: list[Tensor] = [self.get_parameter(f"asc_{name if name in known else 'vv'}_param") for name in names]
        return cast(Tensor, self.mlp(torch.stack(vectors)))


class _Resampler(nn.Module):
    """Bilinear resampling, refined by four 1x1 experts that are weighted by the change of scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, width // 4), nn.GELU(), nn.Linear(width // 4, 4))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.width = width

    def forward(self, maps: Tensor, size: tuple[int, int], scale: float) -> Tensor:
        x = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        encoded = sincos_1d(torch.tensor(scale, dtype=torch.float64).log(), self.width).to(x)
        weights = (self.mlp(encoded) / self.temperature.clamp(min=1e-3)).softmax(dim=-1)
        refined = torch.stack([expert(x) for expert in self.experts])
        return x + torch.einsum("e,ebchw->bchw", weights, refined)
