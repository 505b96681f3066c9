"""Loading published files: strict, safe, and explained when it fails."""

import argparse
import os
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
