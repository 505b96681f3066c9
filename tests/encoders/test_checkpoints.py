"""Loading published files: strict, safe, and explained when it fails."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cryobench.conf.compose import load_encoder
from cryobench.conf.errors import BadCheckpointError, MissingWeightsError
from cryobench.conf.schema import CheckpointLayout
from cryobench.encoders.checkpoints import file_digest, load_weights
from cryobench.encoders.unet import UNetEncoder
from cryobench.encoders.vit import TimmVit

LAYOUT = CheckpointLayout(key="model", prefix="encoder.")


def encoder() -> UNetEncoder:
    torch.manual_seed(0)
    return UNetEncoder(3, (4, 8))


def published(model: torch.nn.Module) -> dict[str, Any]:
    return {"model": {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}, "epoch": 99}


@pytest.fixture
def content() -> dict[str, Any]:
    torch.manual_seed(1)
    return published(UNetEncoder(3, (4, 8)))


def load(tmp_path: Path, content: Any, layout: CheckpointLayout = LAYOUT) -> UNetEncoder:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    model = encoder()
    load_weights(model, path, layout)
    return model


def test_a_whole_file_loads(tmp_path: Path, content: dict[str, Any]) -> None:
    model = load(tmp_path, content)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, content["model"][f"encoder.{name}"])


def test_safetensors_load_too(tmp_path: Path, content: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(content["model"], tmp_path / "file.safetensors")
    model = encoder()
    load_weights(model, tmp_path / "file.safetensors", CheckpointLayout(prefix="encoder."))
    assert torch.equal(model.state_dict()["stages.0.0.weight"], content["model"]["encoder.stages.0.0.weight"])


def test_a_missing_tensor_is_an_error_and_changes_nothing(tmp_path: Path, content: dict[str, Any]) -> None:
    del content["model"]["encoder.stages.1.3.bias"]
    torch.save(content, tmp_path / "file.pth")
    model = encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BadCheckpointError, match=r"1 missing: stages.1.3.bias.*name them under weights.layout"):
        load_weights(model, tmp_path / "file.pth", LAYOUT)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_extra_and_misshaped_tensors_are_errors(tmp_path: Path, content: dict[str, Any]) -> None:
    content["model"]["encoder.head.weight"] = torch.zeros(2)
    content["model"]["encoder.stages.0.0.weight"] = torch.zeros(4, 5, 3, 3)
    with pytest.raises(BadCheckpointError, match=r"1 extra: head.weight; 1 of another shape: stages.0.0.weight"):
        load(tmp_path, content)


def whole_numbers(state: dict[Any, Any], name: str) -> None:
    state[name] = state[name].to(torch.int64)


def imaginary(state: dict[Any, Any], name: str) -> None:
    state[name] = state[name].to(torch.complex64)


def no_numbers(state: dict[Any, Any], name: str) -> None:
    state[name] = state[name] * float("nan")


def sparse(state: dict[Any, Any], name: str) -> None:
    state[name] = state[name].to_sparse()


def numbered(state: dict[Any, Any], name: str) -> None:
    state[7] = state.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (whole_numbers, "1 of a kind that would be cast: .* torch.int64 instead of torch.float32"),
        (imaginary, "torch.complex64 instead of torch.float32"),
        (no_numbers, "1 with infinite values or no numbers: "),
        (sparse, "which holds no plain values .torch.sparse_coo"),
        (numbered, "7, a name that is no text"),
    ],
)
def test_tensors_that_are_no_weights_are_errors(
    tmp_path: Path, content: dict[str, Any], change: Callable[[dict[Any, Any], str], None], said: str
) -> None:
    change(content["model"], next(name for name in content["model"] if name.endswith("weight")))
    with pytest.raises(BadCheckpointError, match=said):
        load(tmp_path, content)


def test_half_precision_weights_load(tmp_path: Path, content: dict[str, Any]) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in content["model"].items()}
    model = load(tmp_path, {"model": half})
    name, tensor = next(iter(model.state_dict().items()))
    assert torch.equal(tensor, half[f"encoder.{name}"].float())


def test_named_exceptions_are_accepted(tmp_path: Path, content: dict[str, Any]) -> None:
    content["model"]["encoder.head.weight"] = torch.zeros(2)
    content["model"]["decoder.weight"] = torch.zeros(2)
    del content["model"]["encoder.stages.1.3.bias"]
    layout = LAYOUT.model_copy(update={"unused": ("head.*", "decoder.*"), "absent": {"stages.*.bias": "zero"}})
    assert (load(tmp_path, content, layout).state_dict()["stages.1.3.bias"] == 0).all()


def test_tensors_outside_the_prefix_are_errors(tmp_path: Path, content: dict[str, Any]) -> None:
    content["model"]["decoder.weight"] = torch.zeros(2)
    with pytest.raises(BadCheckpointError, match="tensors outside prefix 'encoder.': decoder.weight"):
        load(tmp_path, content)


def test_another_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="expected the tensors under 'model', found state_dict"):
        load(tmp_path, {"state_dict": {}})
    with pytest.raises(BadCheckpointError, match="no tensor with prefix 'encoder.'"):
        load(tmp_path, {"model": {}})


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"No weights file .*gone.pth"):
        load_weights(encoder(), tmp_path / "gone.pth", LAYOUT)


@pytest.mark.parametrize("kept", [0, 10, 500, 3000])
def test_a_truncated_file_is_explained(tmp_path: Path, content: dict[str, Any], kept: int) -> None:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadCheckpointError, match=r"truncated or not a checkpoint|not opened"):
        load_weights(encoder(), path, LAYOUT)


class Attack:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (os.environ["CRYOBENCH_ATTACK"],)


def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOBENCH_ATTACK", str(tmp_path / "executed"))
    content["args"] = Attack()
    with pytest.raises(BadCheckpointError, match="holds more than tensors and plain data, and is not opened"):
        load(tmp_path, content)
    assert not (tmp_path / "executed").exists()


def test_only_the_named_class_is_allowed(tmp_path: Path, content: dict[str, Any]) -> None:
    content["args"] = argparse.Namespace(lr=0.1)
    with pytest.raises(BadCheckpointError, match="is not opened"):
        load(tmp_path, content)
    load(tmp_path, content, LAYOUT.model_copy(update={"allow": ("argparse.Namespace",)}))


def test_another_digest_than_planned_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    load_weights(encoder(), path, LAYOUT, file_digest(path))
    with pytest.raises(BadCheckpointError, match="the trial was planned with 000000000000"):
        load_weights(encoder(), path, LAYOUT, "0" * 64)


@pytest.mark.parametrize("with_biases", [True, False])
def test_s12_dino_keeps_qkv_biases_and_takes_zero_where_there_are_none(tmp_path: Path, with_biases: bool) -> None:
    """The reference drops them from a checkpoint that has them."""
    spec = load_encoder("s12_dino")
    settings = {**spec.settings, "embed_dim": 24, "num_heads": 3}
    model = TimmVit.build({"optical": ("B4",)}, 32, settings)
    torch.manual_seed(3)
    state = {
        f"backbone.{name.removeprefix('vit.')}": torch.randn_like(tensor)
        for name, tensor in model.state_dict().items()
        if with_biases or not name.endswith("qkv.bias")
    }
    state["backbone.norm.weight"] = torch.ones(24)
    torch.save({"teacher": state, "args": argparse.Namespace()}, tmp_path / "dino.pth")
    layout = spec.variants["optical"].weights.layout  # type: ignore[union-attr]
    load_weights(model, tmp_path / "dino.pth", layout)
    bias = model.state_dict()["vit.blocks.0.attn.qkv.bias"]
    expected = state["backbone.blocks.0.attn.qkv.bias"] if with_biases else torch.zeros(72)
    assert torch.equal(bias, expected)


@pytest.mark.parametrize("variant", ["optical", "sar", "joint"])
def test_one_published_croma_file_serves_every_variant(tmp_path: Path, variant: str) -> None:
    """The file holds both towers, the joint encoder and heads; each variant takes its part."""
    from cryobench.encoders.registry import family_class

    spec = load_encoder("croma")
    settings = {**spec.settings, "encoder_dim": 32, "encoder_depth": 24, "taps": (3, 5, 7, 11)}
    bands = {m: tuple(b) for m, b in spec.variants["joint"].bands.items()}
    whole = family_class("croma", "croma").build(bands, 64, settings)
    torch.manual_seed(4)
    names = {"towers.optical.": "s2_encoder", "towers.sar.": "s1_encoder", "cross.": "joint_encoder"}
    content: dict[str, dict[str, torch.Tensor]] = {"s1_GAP_FFN": {"0.weight": torch.ones(2)}}
    for name, tensor in whole.state_dict().items():
        start = next(s for s in names if name.startswith(s))
        content.setdefault(names[start], {})[name.removeprefix(start)] = torch.randn_like(tensor)
    torch.save(content, tmp_path / "CROMA_large.pt")
    chosen = spec.variants[variant]  # type: ignore[index]
    model = family_class("croma", "croma").build({m: tuple(b) for m, b in chosen.bands.items()}, 64, settings)
    assert chosen.weights is not None
    load_weights(model, tmp_path / "CROMA_large.pt", chosen.weights.layout)
    tower = "sar" if variant == "sar" else "optical"
    expected = content["s1_encoder" if tower == "sar" else "s2_encoder"]["linear_input.weight"]
    assert torch.equal(model.state_dict()[f"towers.{tower}.linear_input.weight"], expected)
    del content["s2_encoder"], content["s1_encoder"]
    torch.save(content, tmp_path / "CROMA_large.pt")
    with pytest.raises(BadCheckpointError, match="missing: towers."):
        load_weights(model, tmp_path / "CROMA_large.pt", chosen.weights.layout)


def test_prithvi_keeps_its_own_positions_where_the_file_has_three_frames(tmp_path: Path) -> None:
    from cryobench.encoders.vit import Prithvi

    spec = load_encoder("prithvi")
    settings = {**spec.settings, "embed_dim": 48, "num_heads": 3, "depth": 2, "taps": (1,)}
    model = Prithvi.build({"optical": ("B2", "B3")}, 32, settings)
    before = model.state_dict()["vit.pos_embed"].clone()
    state = {n.removeprefix("vit."): torch.randn_like(t) for n, t in model.state_dict().items()}
    state["pos_embed"] = torch.randn(1, 1 + 3 * 4, 48)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, None]
    torch.save(state, tmp_path / "p.pt")
    layout = spec.variants["optical"].weights.layout  # type: ignore[union-attr]
    load_weights(model, tmp_path / "p.pt", layout)
    assert torch.equal(model.state_dict()["vit.pos_embed"], before)


def test_spectralgpt_interpolates_positions_of_another_size(tmp_path: Path) -> None:
    from cryobench.encoders.spectralgpt import SpectralGPT

    settings = {**load_encoder("spectralgpt").settings, "embed_dim": 24, "num_heads": 3, "depth": 2, "taps": (1,)}
    bands = {"optical": ("B2", "B3", "B4")}
    large, small = (SpectralGPT.build(bands, side, settings) for side in (64, 32))
    position = torch.arange(64.0).reshape(1, 64, 1).repeat(1, 1, 24)
    found = small.filter_checkpoint({"pos_embed_spatial": position})["pos_embed_spatial"]
    assert found.shape == small.pos_embed_spatial.shape
    assert found.mean() == pytest.approx(position.mean().item(), rel=1e-3)
    assert torch.equal(large.filter_checkpoint({"pos_embed_spatial": position})["pos_embed_spatial"], position)
