from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cryobench.conf.compose import load_encoder
from cryobench.conf.trial import TrialSpec
from cryobench.workers.model.build import build_model
from cryobench.workers.model.cost import ModelCost, cost_of, multiply_adds


def cost(name: str, variant: str, crop: int) -> ModelCost:
    spec = load_encoder(name)
    bands = {m: tuple(b) for m, b in spec.variants[variant].bands.items()}  # type: ignore[index]
    return cost_of(spec.family, dict(spec.settings), bands, crop, crop, spec.decoder, 512, 2)


def test_remoteclip_comes_out_at_the_papers_figure() -> None:
    """The paper's 14 leaves attention out: the counter does not see the fused inference path of nn.MultiheadAttention.

    Ours counts it: 4 projections of width 768 and two products over 50 tokens in each of 12 blocks.
    """
    found = cost("remoteclip", "optical", 224)
    attention = 12 * (4 * 50 * 768**2 + 2 * 50 * 50 * 768) / 1e9
    assert found.gmacs - attention == pytest.approx(14.0, abs=0.05)
    assert found.gmacs == pytest.approx(15.5, abs=0.05)


@pytest.mark.parametrize(
    ("name", "variant", "crop", "encoder_gflop"),
    [("s12_moco", "optical", 224, 9.0), ("gfm_swin", "optical", 192, 23.0)],
)
def test_encoders_come_out_at_the_known_figures(name: str, variant: str, crop: int, encoder_gflop: float) -> None:
    assert 2 * cost(name, variant, crop).encoder_gmacs == pytest.approx(encoder_gflop, rel=0.08)


def test_parameters_are_the_published_ones() -> None:
    assert cost("croma", "joint", 120).encoder_parameters == pytest.approx(655_765_504, rel=1e-4)
    assert cost("terramind", "joint", 224).encoder_parameters == pytest.approx(87.7e6, rel=0.01)


@pytest.mark.parametrize(
    "overrides",
    [
        ("encoder=unet_small",),
        ("encoder=s12_moco_small",),
        ("encoder=vit_small_demo", "regime=linear_probe"),
        ("encoder=vit_small_demo", "regime=lora"),
    ],
)
def test_counting_on_shapes_alone_gives_what_a_real_model_does(
    one_trial: Callable[..., TrialSpec], overrides: tuple[str, ...]
) -> None:
    spec = one_trial(*overrides)
    model = build_model(spec, 2, None).eval()
    size = spec.encoder.input_size if isinstance(spec.encoder.input_size, int) else 64
    inputs = {modality: torch.zeros(1, len(bands), size, size) for modality, bands in spec.encoder.bands.items()}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs)
    assert multiply_adds(spec, 2, (64, 64)) == counter.get_total_flops() / 2e9


def test_counting_allocates_nothing(one_trial: Callable[..., TrialSpec]) -> None:
    """RAMEN's plain attention took gigabytes here, after training."""
    import psutil

    before = psutil.Process().memory_info().rss
    assert multiply_adds(one_trial("encoder=ramen", "regime=frozen"), 2, (64, 64)) > 20
    assert psutil.Process().memory_info().rss - before < 300e6  # importing its libraries, no tensor


@pytest.mark.parametrize("encoder", ["vit_small_demo", "unet_small"])
def test_a_trial_counts_what_the_listing_counts(one_trial: Callable[..., TrialSpec], encoder: str) -> None:
    spec = one_trial(f"encoder={encoder}")
    chosen, channels = spec.encoder, spec.protocol.decoder_channels
    listed = cost_of(
        chosen.family, dict(chosen.settings), dict(chosen.bands), 96, 96, chosen.decoder, channels, classes=2
    )
    assert multiply_adds(spec, 2, (96, 96)) == pytest.approx(listed.gmacs, rel=1e-6)
