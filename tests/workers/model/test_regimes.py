"""Which parameters train in which regime, and how fast."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cryobench.conf.compose import load_encoder, load_encoders
from cryobench.conf.errors import ConfigError
from cryobench.conf.schema import RegimeSpec
from cryobench.conf.trial import TrialSpec
from cryobench.encoders.registry import family_class
from cryobench.workers.model.adapters import add_lora, block_places
from cryobench.workers.model.build import build_model
from cryobench.workers.model.segmentation import SegmentationModel
from cryobench.workers.place import Place
from cryobench.workers.training.epoch import make_optimizer, set_rate
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]
MOCO = "encoder=s12_moco_small"


def learning(model: SegmentationModel) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_linear_probe_trains_one_layer(one_trial: Build) -> None:
    model = build_model(one_trial(MOCO, "regime=linear_probe"), 2, None)
    assert learning(model) == {"decoder.classifier.weight", "decoder.classifier.bias"}
    image = {"optical": torch.randn(2, 13, 96, 96)}
    assert model(image).shape == (2, 2, 96, 96)  # type: ignore[arg-type]


def test_lora_trains_adapters_and_decoder(one_trial: Build) -> None:
    frozen = build_model(one_trial(MOCO, "regime=frozen"), 2, None)
    model = build_model(one_trial(MOCO, "regime=lora"), 2, None)
    names = learning(model)
    inside = {name for name in names if name.startswith("encoder.")}
    assert inside
    assert all("lora_" in name for name in inside)
    assert {name for name in names if not name.startswith("encoder.")} == learning(frozen)
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in inside}
    assert layers == {"qkv", "proj", "fc1", "fc2"}
    # At the start adapters change nothing, and the weights below are the frozen encoder's.
    image: Any = {"optical": torch.randn(1, 13, 96, 96)}
    for a, b in zip(model.eval().encoder(image), frozen.eval().encoder(image), strict=True):
        torch.testing.assert_close(a, b)


def test_every_adapter_is_reached_by_the_gradient(one_trial: Build) -> None:
    model = build_model(one_trial(MOCO, "regime=lora"), 2, None)
    for name, p in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would stop the gradient of lora_A
            nn.init.normal_(p)
    image: Any = {"optical": torch.randn(2, 13, 96, 96)}
    model(image).sum().backward()
    for name, p in model.named_parameters():
        if "lora_" in name:
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("regime", ["lora", "linear_probe", "finetune_llrd"])
def test_a_trial_of_the_regime_runs_and_resumes(place: Place, one_trial: Build, tmp_path: Path, regime: str) -> None:
    from dataclasses import replace

    from cryobench.conf.errors import InterruptedTrialError

    spec = one_trial(MOCO, f"regime={regime}")
    expected = run_trial(spec, replace(place, storage=tmp_path / "whole"))
    with pytest.raises(InterruptedTrialError):
        run_trial(spec, place, should_stop=lambda: True)
    assert run_trial(spec, place).reproducible() == expected.reproducible()
    assert expected.cost.trained_parameters <= expected.cost.parameters


def test_layer_wise_rates_fall_with_depth(one_trial: Build) -> None:
    spec = one_trial(MOCO, "regime=finetune_llrd")
    model = build_model(spec, 2, None)
    optimizer = make_optimizer(model, spec)
    scale = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: scale[id(p)] for name, p in model.named_parameters()}
    blocks = len(model.encoder.vit.blocks)  # type: ignore[union-attr,arg-type]
    assert found["decoder.conv_seg.weight"] == 1.0
    for i in range(blocks):
        assert found[f"encoder.vit.blocks.{i}.attn.qkv.weight"] == pytest.approx(0.75 ** (blocks - i))
    assert found["encoder.vit.patch_embed.proj.weight"] == pytest.approx(0.75 ** (blocks + 1))
    assert found["encoder.vit.pos_embed"] == found["encoder.vit.patch_embed.proj.weight"]
    set_rate(optimizer, 1e-3)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3 * s for s in set(found.values())}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [e.name for e in load_encoders() if e.decoder != "unet"])
def test_every_transformer_has_depths_and_adapters(name: str) -> None:
    """On the published sizes; what is adapted must be reached by the gradient."""
    spec = load_encoder(name)
    variant, found = next(iter(spec.variants.items()))
    bands: Any = {
        m: b if b != "dataset" else ("B2", "B3", "B4")
        for m, b in found.bands.items()
        if m == "optical" or variant != "own"
    }
    size = spec.input_size if isinstance(spec.input_size, int) else 64
    encoder = family_class(spec.family, name).build(bands, size, spec.settings | found.settings)
    places = block_places([n for n, _ in encoder.named_parameters()])
    assert len(set(places.values())) >= 5, sorted(set(places.values()))
    assert min(places.values()) <= 1  # torchvision counts the patch embedding as its first stage
    targets = add_lora(encoder, 2, 4.0)
    assert targets
    for n, p in encoder.named_parameters():
        if "lora_B" in n:
            nn.init.normal_(p, std=0.01)
    inputs: Any = {m: torch.randn(1, len(b), size, size) for m, b in bands.items()}
    sum(f.float().square().sum() for f in encoder.eval()(inputs)).backward()  # type: ignore[union-attr]
    missed = [n for n, p in encoder.named_parameters() if "lora_" in n and (p.grad is None or not p.grad.any())]
    assert not missed, missed[:5]


def test_what_cannot_be_is_explained(one_trial: Build) -> None:
    with pytest.raises(ValueError, match="lora adapts a frozen encoder"):
        RegimeSpec(name="x", train_encoder=True, lora={"rank": 2})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer_decay needs an encoder that trains"):
        RegimeSpec(name="x", train_encoder=False, layer_decay=0.5)
    unet = family_class("unet", "unet").build({"optical": ("B2",)}, None, load_encoder("unet_small").settings)
    with pytest.raises(ConfigError, match="has no linear layers in attention or MLP"):
        add_lora(unet, 2, 4.0)


def test_a_baseline_has_nothing_to_adapt_and_trains_fully(one_trial: Build) -> None:
    model = build_model(one_trial("encoder=unet_small", "regime=lora"), 2, None)
    assert learning(model) == {name for name, _ in model.named_parameters()}
