"""``protocol=reference`` brings the reference's errors back, each by its own switch; precisions are as they say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from cryobench.conf.compose import load_dataset, load_encoder, load_sweep
from cryobench.conf.schema import ProtocolSpec
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.store.convert import convert
from cryobench.datasets.synth.generate import fitted, generate
from cryobench.encoders.registry import family_class
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.workers.model.build import build_model
from cryobench.workers.model.segmentation import labelled_pixels, segmentation_loss, training_step
from cryobench.workers.place import Place
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.training.metrics import split_metrics
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]


def errors(*names: str) -> ProtocolSpec:
    return ProtocolSpec(reference_errors=names)  # type: ignore[arg-type]


def test_the_reference_protocol_is_the_papers_with_all_errors() -> None:
    paper, reference = (load_sweep([f"protocol={name}"]).protocol for name in ("paper", "reference"))
    assert paper.reference_errors == ()
    assert len(reference.reference_errors) == 4
    assert reference.model_copy(update={"reference_errors": ()}) == paper


def test_frozen_encoders_may_be_left_in_train_mode(one_trial: Build) -> None:
    overrides = ("encoder=s12_moco_small", "regime=frozen", "protocol.reference_errors=[frozen_in_train_mode]")
    model = build_model(one_trial(*overrides), 2, None).train()
    assert model.encoder.training
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert not model.eval().encoder.training


def test_a_float32_confusion_matrix_loses_ones() -> None:
    tiles = np.zeros((3, 2, 2), np.int64)
    tiles[:, 0, 0] = [2**24, 1, 1]
    tiles[:, 1, 1] = 2**22
    tiles[0, 0, 1] = 2**20
    exact, lossy = split_metrics(tiles, errors()), split_metrics(tiles, errors("float32_confusion"))
    lost = tiles.sum(axis=0).copy()
    lost[0, 0] = 2**24
    assert exact.iou[0] != lossy.iou[0]
    assert lossy == split_metrics(lost[None], errors())


def test_precision_and_recall_may_be_swapped() -> None:
    tiles = np.array([[[5, 1], [2, 7]]], np.int64)
    right, swapped = split_metrics(tiles, errors()), split_metrics(tiles, errors("swapped_precision_and_recall"))
    assert right.precision == swapped.recall != swapped.precision
    assert right.miou == swapped.miou


def test_s12_dino_may_drop_its_qkv_biases(tmp_path: Path) -> None:
    where = Places(tmp_path / "s", tmp_path, tmp_path / "c", tmp_path / "w")
    asked = ["encoders=[s12_dino]", "datasets=[glid]", "regimes=[frozen]", "lr_search=null", "weights=random"]
    (paper,) = make_plan(load_sweep(["sweep=paper_frozen", *asked]), where).trials
    (reference,) = make_plan(load_sweep(["sweep=paper_frozen", "protocol=reference", *asked]), where).trials
    assert "qkv_bias" not in paper.spec.encoder.settings
    assert reference.spec.encoder.settings["qkv_bias"] is False
    small = {"embed_dim": 32, "num_heads": 2, **load_encoder("s12_dino").settings}
    whole = family_class("timm_vit", "x").build({"optical": ("B4",)}, 32, small)
    without = family_class("timm_vit", "x").build({"optical": ("B4",)}, 32, {**small, "qkv_bias": False})
    published = {name.removeprefix("vit."): values for name, values in whole.state_dict().items()}
    assert without.filter_checkpoint(published).keys() == without.state_dict().keys()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_learn_alike_and_say_so(place: Place, one_trial: Build, precision: str) -> None:
    exact = run_trial(one_trial(), place)
    spec = one_trial(f"protocol.precision={precision}", "protocol.channels_last=true")
    result = run_trial(spec, place)
    assert result.trial_id != exact.trial_id
    a, b = (TrialFolder(place.storage, r.trial_id).epochs()[-1].loss for r in (exact, result))
    assert a == pytest.approx(b, rel=0.1)
    from cryobench.orchestrator.results.leaderboard import leaderboard_row

    row = leaderboard_row(TrialFolder(place.storage, spec.trial_id), "x", None)
    assert row is not None
    assert row["precision"] == precision


def test_bf16_runs_the_model_in_bf16_and_the_loss_in_float32() -> None:
    seen: list[torch.dtype] = []

    class Probe(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 2, 1)

        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            logits: torch.Tensor = self.layer(inputs["optical"])
            seen.append(logits.dtype)
            return logits

    model = Probe()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    loss = training_step(model, optimizer, {"optical": torch.ones(2, 1, 4, 4)}, labels, precision="bf16")
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert model.layer.weight.dtype == torch.float32


def test_gathered_gradients_are_the_whole_batchs() -> None:
    """Where there is no batch norm, and with unlabelled pixels spread unevenly."""
    torch.manual_seed(0)
    image, labels = torch.randn(8, 3, 6, 6), torch.randint(0, 2, (8, 6, 6))
    labels[:3] = 255
    grads, losses = [], []
    for parts in (1, 4):
        torch.manual_seed(1)
        layer = torch.nn.Conv2d(3, 2, 3, padding=1)
        model = torch.nn.Module()
        model.forward = lambda inputs, layer=layer: layer(inputs["optical"])  # type: ignore[method-assign, misc]
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        losses.append(training_step(model, optimizer, {"optical": image}, labels, micro_batches=parts))
        grads.append(layer.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(losses[0], losses[1])
    expected = segmentation_loss(layer(image), labels)
    torch.testing.assert_close(losses[0], expected)
    assert labelled_pixels(labels) == 5 * 36


def test_a_loss_that_turns_nan_on_one_batch_is_a_divergence(tmp_path: Path) -> None:
    """One tile of values that float32 cannot square; every other batch is well."""
    generate("gsdd", tmp_path / "raw", tiles=(8, 2, 2), size=64)
    path = tmp_path / "raw" / "train" / "image" / "0003.tif"
    with rasterio.open(path, "r+") as raster:
        raster.write(np.full(raster.read().shape, 3e38, np.float32))
    convert(fitted(load_dataset("gsdd"), 64), tmp_path / "raw", tmp_path / "gsdd.zarr")
    where = Places(tmp_path / "storage", tmp_path, tmp_path / "cache", tmp_path / "weights")
    asked = ["encoder=unet_small", "dataset=gsdd", "regime=finetune", "lr=1e-3", "lr_search=null"]
    asked += ["statistics=published", "protocol.epochs=2", "protocol.crops_per_tile=1"]
    (trial,) = make_plan(load_sweep(["sweep=demo", *asked]), where).trials
    result = run_trial(trial.spec, Place(where.storage, where.data_dir, where.cache_dir, device="cpu"))
    assert result.status == "diverged"
    assert "The loss became nan in epoch 1" in str(result.message)
    assert result.test is None


@pytest.mark.slow
def test_a_compiled_trial_learns_alike(place: Place, one_trial: Build) -> None:
    exact, compiled = (run_trial(one_trial(f"protocol.compile={on}"), place) for on in ("false", "true"))
    a, b = (TrialFolder(place.storage, r.trial_id).epochs()[-1].loss for r in (exact, compiled))
    assert a == pytest.approx(b, rel=0.02)


def test_deterministic_algorithms_are_asked_for(place: Place, one_trial: Build, tmp_path: Path) -> None:
    spec = one_trial("protocol.deterministic=true")
    first = run_trial(spec, place)
    assert torch.are_deterministic_algorithms_enabled()
    second = run_trial(spec, replace(place, storage=tmp_path / "again"))
    assert first.reproducible() == second.reproducible()
    run_trial(one_trial(), place)
    assert not torch.are_deterministic_algorithms_enabled()
