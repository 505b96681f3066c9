"""``protocol.deterministic=true`` is true or an error. No GPU is needed but where a test says so."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cryobench.conf.errors import ConfigError
from cryobench.conf.schema import EncoderSpec
from cryobench.conf.trial import TrialSpec
from cryobench.encoders.unet import UNetEncoder
from cryobench.workers.model.build import make_decoder
from cryobench.workers.model.numerics import _set_workspace, is_refusal, set_numerics
from cryobench.workers.model.resampling import pool_by_matrices, resize_by_matrices
from cryobench.workers.model.segmentation import SegmentationModel, make_adamw, summed_loss, training_step
from cryobench.workers.place import Place
from cryobench.workers.record.events import AttemptStarted
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.trial import run_trial

sys.path.insert(0, str(Path(__file__).parents[2] / "encoders"))
from test_all_systems import SMALL, SYSTEMS, bands_of, images, small

Build = Callable[..., TrialSpec]
Form = Callable[[torch.Tensor], torch.Tensor]

#: What torch's documentation of `use_deterministic_algorithms` says it refuses on GPUs, as its operators are called.
REFUSED = {
    "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "max_unpool2d",
    "max_unpool3d",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "_upsample_bilinear2d_aa_backward",
    "_upsample_bicubic2d_aa_backward",
    "upsample_trilinear3d_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "put_",
    "histc",
    "median",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "_ctc_loss_backward",
    "_embedding_bag",
}


@pytest.fixture
def deterministic() -> Iterator[None]:
    set_numerics("fp32", deterministic=True)
    yield
    set_numerics("fp32")


def both(matrices: Form, own: Form, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Values of both forms, and gradients for the same one from above."""
    found = []
    for form in (matrices, own):
        leaf = x.clone().requires_grad_()
        values = form(leaf)
        torch.manual_seed(3)
        values.backward(torch.randint(-8, 8, values.shape).float())  # type: ignore[no-untyped-call]
        found.append((values.detach(), leaf.grad))
    yield from zip(*found, strict=True)  # type: ignore[misc]


SIDES = [(7, 7), (14, 10), (3, 5), (1, 1), (16, 33)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_pooling_by_matrices_is_torchs_but_for_rounding(sides: tuple[int, int], size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *sides)
    for found, expected in both(lambda v: pool_by_matrices(v, size), lambda v: F.adaptive_avg_pool2d(v, size), x):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_pooling_is_torchs_bit_for_bit_where_nothing_is_rounded(size: int) -> None:
    """Windows of powers of two: sums and means of such integers are exact."""
    x = torch.randint(-100, 100, (2, 3, 16, 8)).float()
    for found, expected in both(lambda v: pool_by_matrices(v, size), lambda v: F.adaptive_avg_pool2d(v, size), x):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("target", [(7, 7), (14, 14), (5, 40), (1, 2)])
def test_resizing_by_matrices_is_torchs_but_for_rounding(sides: tuple[int, int], target: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *sides)

    def own(values: torch.Tensor) -> torch.Tensor:
        return F.interpolate(values, size=target, mode="bilinear", align_corners=False)

    for found, expected in both(lambda v: resize_by_matrices(v, target), own, x):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-5)


def test_doubling_is_torchs_bit_for_bit() -> None:
    x = torch.randint(-100, 100, (2, 3, 7, 9)).float()

    def own(values: torch.Tensor) -> torch.Tensor:
        return F.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)

    for found, expected in both(lambda v: resize_by_matrices(v, (14, 18)), own, x):
        assert torch.equal(found, expected)


def test_averages_of_bfloat16_maps_are_those_of_float32() -> None:
    x = torch.rand(1, 2, 7, 7).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = pool_by_matrices(x, 6)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, pool_by_matrices(x.float(), 6).to(torch.bfloat16), rtol=0, atol=0)


def test_the_loss_is_the_same_but_for_rounding_and_its_gradient_bit_for_bit(deterministic: None) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    labels[0, :4] = 255
    found, expected = both(
        lambda v: summed_loss(v, labels),
        lambda v: F.cross_entropy(v, labels, ignore_index=255, reduction="sum"),
        logits,
    )
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)
    assert torch.equal(*expected)


class Recorder(TorchDispatchMode):
    """Names of all operators that run, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        if func is torch.ops.aten.nll_loss2d_forward.default and args[3] != 0:
            self.names.add("nll_loss2d_forward with a sum")
        return func(*args, **(kwargs or {}))


def step(encoder: EncoderSpec) -> set[str]:
    """The operators of one step of training, encoder and all."""
    bands = bands_of(encoder, next(iter(encoder.variants)))
    inside, side = small(encoder, bands)
    decoder = make_decoder(inside, encoder.decoder, 8, 0.1, 3)
    model = SegmentationModel(inside, decoder, train_encoder=True)
    optimizer = make_adamw(list(model.trained_parameters()), 1e-4, (0.9, 0.999), 0.05)
    labels = torch.randint(0, 3, (2, side, side))
    with Recorder() as recorder:
        training_step(model, optimizer, images(bands, side), labels)
    return recorder.names


FAMILIES = {e.family: e for e in SYSTEMS}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_needs_what_torch_refuses(family: str, deterministic: None) -> None:
    names = step(FAMILIES[family])
    if family == "ramen":  # resizes by torch's function, which on GPUs takes its own substitute
        names -= {"upsample_bilinear2d_backward"}
    assert not names & (REFUSED | {"nll_loss2d_forward with a sum"})


def test_every_family_is_among_them_and_without_it_the_check_sees_what_is_refused() -> None:
    assert set(FAMILIES) == set(SMALL)
    names = step(FAMILIES["timm_vit"])
    assert {"_adaptive_avg_pool2d_backward", "upsample_bilinear2d_backward", "nll_loss2d_forward with a sum"} <= names


def test_what_torch_refuses_ends_the_trial_with_what_to_do(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch, deterministic: None
) -> None:
    real = UNetEncoder.forward

    def forward(self: UNetEncoder, inputs: dict[Any, torch.Tensor]) -> list[torch.Tensor]:
        if self.training:
            torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))  # refused on the CPU as well
        return real(self, inputs)

    monkeypatch.setattr(UNetEncoder, "forward", forward)
    spec = one_trial("protocol.deterministic=true", "protocol.epochs=1")
    with pytest.raises(ConfigError, match=r"cannot be deterministic on its device: put_.*deterministic=false"):
        run_trial(spec, place)
    state = TrialFolder(place.storage, spec.trial_id).state()
    assert (state.status, state.kind, state.waits_for_user) == ("failed", "invalid_config", True)
    assert run_trial(one_trial("protocol.epochs=1"), place).status == "completed"
    assert not is_refusal(RuntimeError("another"))


def test_precision_does_not_depend_on_it() -> None:
    for deterministic in (True, False):
        set_numerics("fp32", deterministic)
        assert torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.benchmark is not deterministic
        assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_cublas_is_set_up_before_it_is_used_or_that_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    _set_workspace(environment, deterministic=False)
    assert environment == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    _set_workspace(environment, deterministic=True)  # a worker that ran another trial before
    other = {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    _set_workspace(other, deterministic=True)
    assert other == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    with pytest.raises(ConfigError, match=r"is ':1:1', expected one of :4096:8, :16:8"):
        _set_workspace({"CUBLAS_WORKSPACE_CONFIG": ":1:1"}, deterministic=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="this process used it already"):
        _set_workspace({}, deterministic=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("encoder", ["unet_small", "s12_moco_small"])
def test_two_runs_on_a_gpu_are_the_same_bit_for_bit(
    place: Place, one_trial: Build, tmp_path: Path, encoder: str, precision: str
) -> None:
    spec = one_trial(f"encoder={encoder}", "protocol.deterministic=true", f"protocol.precision={precision}")
    there = replace(place, device="cuda")
    results = [run_trial(spec, replace(there, storage=tmp_path / name)) for name in "ab"]
    assert results[0].reproducible() == results[1].reproducible()
    begun = next(e for e in TrialFolder(tmp_path / "a", spec.trial_id).events() if isinstance(e, AttemptStarted))
    assert begun.device.startswith("cuda")
