"""What every encoder must keep, checked on small copies of the same classes."""

from typing import Any

import pytest
import torch

from cryobench.conf.compose import load_datasets, load_encoder, load_encoders
from cryobench.conf.errors import ConfigError
from cryobench.conf.feeding import choose_variant, feed
from cryobench.conf.schema import EncoderSpec
from cryobench.conf.terms import Variant
from cryobench.encoders.base import Encoder
from cryobench.encoders.registry import family_class
from cryobench.workers.model.decoders.unet_decoder import UNetDecoder
from cryobench.workers.model.decoders.upernet import UPerNet

#: Per family, settings that make the same class small, and an input to go with them.
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "timm_vit": ({"embed_dim": 24, "depth": 4, "num_heads": 3, "taps": (0, 1, 2, 3)}, 64),
    "timm_clip": ({"embed_dim": 24, "depth": 4, "num_heads": 3, "taps": (0, 1, 2, 3)}, 96),
    "prithvi": ({"embed_dim": 48, "depth": 2, "num_heads": 3, "taps": (1,)}, 64),
    "scale_mae": ({"embed_dim": 24, "depth": 4, "num_heads": 3, "taps": (0, 1, 2, 3)}, 64),
    "timm_beit": ({"embed_dim": 24, "depth": 4, "num_heads": 3, "taps": (0, 1, 2, 3)}, 64),
    "timm_swin": ({"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}, 192),
    "torchvision_swin": ({"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}, 128),
    "spectralgpt": ({"embed_dim": 24, "depth": 4, "num_heads": 3, "taps": (0, 1, 2, 3)}, 64),
    "ramen": ({"embed_dim": 48, "depth": 4, "num_heads": 3, "taps": (0, 1, 2, 3)}, 64),
    "dofa": ({"embed_dim": 48, "depth": 4, "num_heads": 3, "taps": (0, 1, 2, 3)}, 64),
    "croma": ({"encoder_dim": 32, "encoder_depth": 8, "num_heads": 16, "taps": (0, 1, 2, 3)}, 64),
    "terramind": ({"dim": 48, "depth": 4, "num_heads": 3, "taps": (0, 1, 2, 3)}, 64),
    "unet": ({"topology": (4, 8, 16, 32)}, 64),
}
SYSTEMS = [e for e in load_encoders() if not e.name.endswith(("_small", "_demo", "_large"))]
VARIANTS = [pytest.param(e, v, id=f"{e.name}-{v}") for e in SYSTEMS for v in e.variants]


def bands_of(encoder: EncoderSpec, variant: Variant) -> dict[str, tuple[str, ...]]:
    own = {"optical": ("B2", "B3", "B4", "B8", "B11"), "sar": ("VV",)}
    return {m: own[m] if b == "dataset" else tuple(b) for m, b in encoder.variants[variant].bands.items()}


def small(encoder: EncoderSpec, bands: dict[str, tuple[str, ...]]) -> tuple[Encoder, int]:
    settings, side = SMALL[encoder.family]
    torch.manual_seed(0)
    size = None if encoder.input_size == "tile" else side
    cls = family_class(encoder.family, encoder.name)
    return cls.build(bands, size, {**encoder.settings, **settings}), side  # type: ignore[arg-type]


def images(bands: dict[str, tuple[str, ...]], side: int, batch: int = 2) -> dict[Any, torch.Tensor]:
    torch.manual_seed(1)
    return {m: torch.randn(batch, len(names), side, side) for m, names in bands.items()}


@pytest.mark.parametrize(("encoder", "variant"), VARIANTS)
def test_taps_are_as_declared_and_a_batch_of_one_is_the_same(encoder: EncoderSpec, variant: Variant) -> None:
    bands = bands_of(encoder, variant)
    model, side = small(encoder, bands)
    model.eval()
    with torch.no_grad():
        maps = model(images(bands, side))
        one = model({m: x[:1] for m, x in images(bands, side).items()})
    assert tuple(m.shape[1] for m in maps) == model.channels
    assert len({m.shape[-2:] for m in maps}) > 1 or not model.pyramid
    for both, single in zip(maps, one, strict=True):
        torch.testing.assert_close(both[:1], single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("encoder", "variant"), VARIANTS)
def test_gradients_reach_every_parameter(encoder: EncoderSpec, variant: Variant) -> None:
    bands = bands_of(encoder, variant)
    model, side = small(encoder, bands)
    model.requires_grad_(True).train()
    torch.stack([m.square().mean() for m in model(images(bands, side))]).sum().backward()  # type: ignore[no-untyped-call]
    untouched = {name for name, p in model.named_parameters() if p.grad is None}
    # RAMEN keeps a vector for every polarisation; a data set feeds some of them.
    untouched = {name for name in untouched if not name.startswith("radar_projector.")}
    # BEiT's mask token is for pretraining.
    assert untouched - {"beit.mask_token"} == set()


@pytest.mark.parametrize(("encoder", "variant"), VARIANTS)
def test_bfloat16_stays_finite(encoder: EncoderSpec, variant: Variant) -> None:
    bands = bands_of(encoder, variant)
    model, side = small(encoder, bands)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.isfinite(m.float()).all() for m in model.eval()(images(bands, side)))


@pytest.mark.parametrize("encoder", [pytest.param(e, id=e.name) for e in SYSTEMS])
def test_every_data_set_can_be_fed(encoder: EncoderSpec) -> None:
    for dataset in load_datasets():
        for view in ("reference", "actual"):
            variant = choose_variant(encoder, dataset, "auto", view)  # type: ignore[arg-type]
            try:
                bands, _ = feed(encoder, variant, dataset, view)  # type: ignore[arg-type]
            except ConfigError:
                assert view == "actual"  # a polarisation under its own name may be none that the encoder knows
                continue
            model, side = small(encoder, bands)  # type: ignore[arg-type]
            if encoder.decoder == "unet":
                head: torch.nn.Module = UNetDecoder(model.channels, len(dataset.classes))
            else:
                head = UPerNet(model.channels, model.pyramid, 8, len(dataset.classes), 0.1)
            with torch.no_grad():
                features = model.eval()(images(bands, side))  # type: ignore[arg-type]
                assert head.eval()(features, (side, side)).shape == (2, len(dataset.classes), side, side)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "variant"), VARIANTS)
def test_compiled_it_is_the_same(encoder: EncoderSpec, variant: Variant) -> None:
    bands = bands_of(encoder, variant)
    model, side = small(encoder, bands)
    model.eval()
    with torch.no_grad():
        expected = model(images(bands, side))
        found = torch.compile(model, backend="aot_eager")(images(bands, side))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_nothing_behind_the_last_tap_is_computed() -> None:
    """CROMA's optical tower has 24 blocks, of which 12 are read."""
    encoder = load_encoder("croma")
    bands = bands_of(encoder, "optical")
    settings, side = SMALL["croma"]
    full = family_class("croma", "croma").build(bands, side, {**encoder.settings, **settings, "taps": (0, 1, 2, 7)})
    short = family_class("croma", "croma").build(bands, side, {**encoder.settings, **settings, "taps": (0, 1, 2)})
    assert len(short.towers["optical"].transformer.layers) == 3  # type: ignore[index, union-attr]
    state = full.state_dict()
    short.load_state_dict({name: state[name] for name in short.state_dict()})
    with torch.no_grad():
        ours, theirs = short.eval()(images(bands, side)), full.eval()(images(bands, side))
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(a, b)


def test_the_large_terramind_is_a_configuration_of_the_same_class() -> None:
    large, base = load_encoder("terramind_large"), load_encoder("terramind")
    assert (large.family, large.settings["dim"], large.settings["taps"]) == (base.family, 1024, (7, 11, 15, 23))
