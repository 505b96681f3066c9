"""The interface that every family keeps, and its messages."""

import pytest
import torch

from cryobench.conf.compose import load_encoder
from cryobench.conf.errors import ConfigError, NotBuiltError, UnknownNameError
from cryobench.encoders.registry import family_class
from cryobench.encoders.unet import UNetEncoder
from cryobench.encoders.vit import TimmVit

VIT = {**load_encoder("vit_small_demo").settings}
BANDS = {"optical": ("B4", "B3"), "sar": ("VV",)}


def test_a_vit_gives_one_map_a_tap() -> None:
    model = TimmVit.build(BANDS, 96, VIT)
    maps = model({"optical": torch.randn(1, 2, 96, 96), "sar": torch.randn(1, 1, 96, 96)})
    assert [tuple(m.shape) for m in maps] == [(1, c, 12, 12) for c in model.channels]


def test_a_unet_gives_a_pyramid_deepest_first() -> None:
    model = UNetEncoder.build(BANDS, None, {"topology": (4, 8, 16, 32)})
    maps = model({"optical": torch.randn(2, 2, 50, 70), "sar": torch.randn(2, 1, 50, 70)})
    assert [m.shape[1] for m in maps] == list(model.channels) == [32, 32, 16, 8, 4]
    assert maps[-1].shape[-2:] == (50, 70)


def test_gradients_reach_every_parameter() -> None:
    for model in (TimmVit.build(BANDS, 96, VIT), UNetEncoder.build(BANDS, None, {"topology": (4, 8)})):
        maps = model({"optical": torch.randn(2, 2, 96, 96), "sar": torch.randn(2, 1, 96, 96)})
        sum(m.sum() for m in maps).backward()  # type: ignore[union-attr]
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_wrong_settings_are_explained() -> None:
    with pytest.raises(UnknownNameError, match="Unknown setting of a timm_vit encoder 'dept'. Did you mean 'depth'"):
        TimmVit.build(BANDS, 96, {**VIT, "dept": 3})
    with pytest.raises(UnknownNameError, match="Unknown timm model 'vit_tiny_patch16_225'"):
        TimmVit.build(BANDS, 96, {**VIT, "model": "vit_tiny_patch16_225"})
    with pytest.raises(ConfigError, match=r"taps \[3, 4\] are not blocks"):
        TimmVit.build(BANDS, 96, {**VIT, "taps": (3, 4)})
    with pytest.raises(ConfigError, match="needs input_size in pixels"):
        TimmVit.build(BANDS, None, VIT)
    with pytest.raises(ConfigError, match="one setting, topology"):
        UNetEncoder.build(BANDS, None, {})


def test_a_family_of_a_later_release_refuses() -> None:
    with pytest.raises(NotBuiltError, match="Encoder 'mine' needs the family 'elsewhere', which is not part"):
        family_class("elsewhere", "mine")


def test_a_band_without_a_wavelength_is_explained() -> None:
    from cryobench.encoders.wavelengths import MICROMETRES, wavelength

    assert wavelength("B8A", MICROMETRES) == 0.864
    with pytest.raises(UnknownNameError, match="Unknown band with a wavelength 'slope'"):
        wavelength("slope", MICROMETRES)
