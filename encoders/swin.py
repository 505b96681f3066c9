"""Hierarchical transformers: GFM's Swin by timm, SatlasNet's Swin-V2 by torchvision."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
import torchvision
from torch import Tensor, nn

from cryobench.conf.terms import Modality
from cryobench.encoders.base import Encoder, required_size, settings_of, stacked


class TimmSwin(Encoder):
    """Each stage after its patch merging; the last stage has none."""

    pyramid = True

    def __init__(self, swin: Any) -> None:
        super().__init__()
        self.swin: Any = swin
        swin.norm = nn.Identity()
        width = swin.embed_dim
        self.channels = (2 * width, 4 * width, 8 * width, 8 * width)

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> TimmSwin:
        """See `Encoder.build`. ``model`` and ``window_size`` are timm's; sizes may be given for other widths."""
        names = {"model", "window_size", "embed_dim", "depths", "num_heads"}
        chosen = settings_of(settings, "timm_swin", names, needed={"model", "window_size"})
        swin = timm.create_model(
            str(chosen.pop("model")),
            pretrained=False,
            num_classes=0,
            img_size=required_size(input_size, "timm_swin"),
            in_chans=sum(len(names) for names in bands.values()),
            drop_path_rate=0.0,
            **chosen,
        )
        return cls(swin)

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """(B, 2C, H/8, W/8), (B, 4C, H/16, W/16), (B, 8C, H/32, W/32) twice, for an embedding of C channels."""
        x = self.swin.patch_embed(stacked(inputs))
        stages = list(self.swin.layers)
        features = []
        for i, stage in enumerate(stages):
            x = stage.blocks(x)
            if i + 1 < len(stages):
                x = stages[i + 1].downsample(x)
            features.append(x.permute(0, 3, 1, 2))
        return features

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published ``layers.N.downsample`` is timm's ``layers.N+1.downsample``."""

        def renamed(name: str) -> str:
            return re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)

        return {f"swin.{renamed(name)}": tensor for name, tensor in state.items()}


class SatlasSwin(Encoder):
    """SatlasNet's single-image Swin-V2-B with a stem for its bands."""

    pyramid = True
    _stages = (1, 3, 5, 7)

    def __init__(self, swin: Any) -> None:
        super().__init__()
        self.features: Any = swin.features
        self.channels = tuple(swin.features[i][-1].norm1.normalized_shape[0] for i in self._stages)

    @classmethod
    def build(
        cls, bands: Mapping[Modality, tuple[str, ...]], input_size: int | None, settings: Mapping[str, Any]
    ) -> SatlasSwin:
        """See `Encoder.build`. ``depths``, ``embed_dim`` and ``num_heads`` may be given for other widths."""
        chosen = settings_of(settings, "torchvision_swin", {"embed_dim", "depths", "num_heads"}, needed=set())
        sizes: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)} | chosen
        swin = torchvision.models.SwinTransformer(
            patch_size=[4, 4],
            embed_dim=sizes["embed_dim"],
            depths=list(sizes["depths"]),
            num_heads=list(sizes["num_heads"]),
            window_size=[8, 8],
            stochastic_depth_prob=0.0,
            num_classes=1,
            block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
        )
        stem = swin.features[0][0]
        count = sum(len(names) for names in bands.values())
        swin.features[0][0] = nn.Conv2d(count, stem.out_channels, stem.kernel_size, stem.stride)
        return cls(swin)

    def forward(self, inputs: dict[Modality, Tensor]) -> list[Tensor]:
        """Four stages at strides 4, 8, 16, 32."""
        x, features = stacked(inputs), []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self._stages:
                features.append(x.permute(0, 3, 1, 2))
        return features

    def filter_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published file wraps the network several times over."""
        return {re.sub(r"^(backbone\.)+", "", name): tensor for name, tensor in state.items()}
