"""Memory, checkpoints and divergence never change a result without saying so: each fault really caused."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cryobench.conf.errors import InterruptedTrialError
from cryobench.conf.trial import TrialSpec
from cryobench.encoders.unet import UNetEncoder as UNet
from cryobench.workers.model.segmentation import training_step
from cryobench.workers.place import Place
from cryobench.workers.record.events import CheckpointDiscarded, Event, Note, OutOfMemory, Resumed
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.result import TrialResult
from cryobench.workers.training import attempt, device_turn
from cryobench.workers.training.device_turn import alone_on_device, sharing_device
from cryobench.workers.training.memory import micro_batches_for
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]
CPU = torch.device("cpu")


def whole(place: Place, spec: TrialSpec) -> TrialResult:
    return run_trial(spec, replace(place, storage=place.storage.parent / "whole"))


def passing(monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], object]) -> None:
    """One forward pass in training, the ``at``-th, finds no memory; all others do."""
    real, passes = UNet.forward, 0

    def forward(self: UNet, inputs: dict[Any, torch.Tensor]) -> list[torch.Tensor]:
        nonlocal passes
        passes += self.training
        if self.training and passes == at:
            error()
        return real(self, inputs)

    monkeypatch.setattr(UNet, "forward", forward)


def refused() -> object:
    return torch.empty(2**58, dtype=torch.uint8)


def host_refuses() -> object:
    raise MemoryError


@pytest.mark.parametrize("error", [refused, host_refuses])
def test_memory_short_for_a_moment_changes_no_bit(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch, error: Callable[[], object]
) -> None:
    expected = whole(place, one_trial())
    passing(monkeypatch, at=4, error=error)  # two steps an epoch: the second step of the second
    seen: list[Event] = []
    result = run_trial(one_trial(), place, report=seen.append)
    assert result.micro_batches == 1
    assert result.reproducible() == expected.reproducible()
    assert [(e.goes_on, e.micro_batches) for e in seen if isinstance(e, OutOfMemory)] == [(True, 1)]
    assert [(e.epoch, e.step) for e in seen if isinstance(e, Resumed)] == [(1, 0)]  # nothing before was lost


def holds_device(cache: Path) -> subprocess.Popen[str]:
    """Another process of the node with a trial on the device, until it is killed."""
    script = f"""
import time, torch
from pathlib import Path
from cryobench.workers.training.device_turn import sharing_device
with sharing_device(Path({str(cache)!r}), torch.device("cpu"), lambda: None):
    print("in", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_being_alone_waits_for_other_processes_and_ends_with_them(tmp_path: Path) -> None:
    process = holds_device(tmp_path)
    asked: list[float] = []

    def keep_waiting() -> None:
        asked.append(time.monotonic())
        if len(asked) == 3:
            process.kill()

    with alone_on_device(tmp_path, CPU, keep_waiting) as alone:
        assert alone
    assert len(asked) >= 3
    process.wait()


def test_waiting_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_turn, "PATIENCE_S", 0.5)
    with sharing_device(tmp_path, CPU, lambda: None) as entered:
        assert entered
        with alone_on_device(tmp_path, CPU, lambda: None) as alone:
            assert not alone
    with alone_on_device(tmp_path, CPU, lambda: None), sharing_device(tmp_path, CPU, lambda: None) as entered:
        assert not entered


def test_several_that_run_out_at_once_take_turns_and_newcomers_wait(tmp_path: Path) -> None:
    inside, most, order = 0, 0, []
    guard, barrier = threading.Lock(), threading.Barrier(3)

    def runs_out(name: str) -> None:
        nonlocal inside, most
        with sharing_device(tmp_path, CPU, lambda: None):
            barrier.wait()
        with alone_on_device(tmp_path, CPU, lambda: None) as alone:
            with guard:
                inside, most = inside + alone, max(most, inside + alone)
            time.sleep(0.3)
            with guard:
                inside -= alone
                order.append(name)

    def comes_late() -> None:
        barrier.wait()
        time.sleep(0.2)
        with sharing_device(tmp_path, CPU, lambda: None):
            assert inside == 0
            order.append("newcomer")

    threads = [threading.Thread(target=runs_out, args=(name,)) for name in "ab"]
    threads.append(threading.Thread(target=comes_late))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(order) == ["a", "b", "newcomer"]
    assert order[0] != "newcomer"
    assert most == 1


@pytest.mark.parametrize("batch", range(4, 18))
def test_no_part_of_a_batch_is_a_single_crop(batch: int) -> None:
    sizes: list[int] = []

    class Probe(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))

        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            sizes.append(len(inputs["optical"]))
            logits: torch.Tensor = self.layers(inputs["optical"])
            return logits

    model, parts = Probe(), micro_batches_for(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.zeros(batch, 1, 1, dtype=torch.int64)
    training_step(model, optimizer, {"optical": torch.randn(batch, 1, 1, 1)}, labels, micro_batches=parts)  # type: ignore[dict-item]
    assert len(sizes) == parts > 1
    assert sum(sizes) == batch
    assert min(sizes) >= 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state, with digests as if it had been written so."""
    from cryobench.workers.record.checkpoint import _plain_digest

    plain = json.loads((folder / "state.json").read_text())
    change(plain)
    plain["training_sha256"] = _plain_digest(plain["training"])
    (folder / "state.json").write_text(json.dumps(plain))


def misfit(folder: Path, name: str, tensor: torch.Tensor) -> None:
    from safetensors.torch import load_file, save_file

    from cryobench.conf.digests import file_sha256

    (path,) = folder.glob("latest-*.safetensors")
    tensors = load_file(path)
    assert name in tensors
    save_file({**tensors, name: tensor}, path)
    edit(folder, lambda plain: plain["latest"].update(sha256=file_sha256(path)))


def first(folder: Path, pattern: str) -> Path:
    return next(folder.glob(pattern))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda f: flip(first(f, "latest-*")), "is not what was written"),
    "flipped bit in the best": (lambda f: flip(first(f, "best-*")), "is not what was written"),
    "half a state.json": (lambda f: (f / "state.json").write_text('{"latest": {'), "not whole JSON"),
    "other numbers in state.json": (
        lambda f: (f / "state.json").write_text((f / "state.json").read_text().replace('"epoch": 1', '"epoch": 2')),
        "state.json is not what was written",
    ),
    "no tensors": (lambda f: first(f, "latest-*").unlink(), "is missing"),
    "lacking field": (lambda f: edit(f, lambda plain: plain.pop("latest")), "lacks 'latest'"),
    "misfitting moments": (lambda f: misfit(f, "optimizer.0.exp_avg", torch.zeros(3)), "optimizer's 0 tensor exp_avg"),
    "step beyond the epoch": (
        lambda f: edit(f, lambda plain: plain["training"].update(epoch=9)),
        "epoch 9 of 3",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_is_discarded_leaves_nothing_behind_and_says_why(
    place: Place, one_trial: Build, fault: str
) -> None:
    """Of misfitting moments the weights are right: they were in the model when the optimizer refused."""
    spec, (spoil, reason) = one_trial(), FAULTS[fault]
    seen: list[Event] = []
    with pytest.raises(InterruptedTrialError):
        run_trial(spec, place, report=seen.append, should_stop=lambda: getattr(seen[-1], "epoch", 0) == 1)
    assert not any(isinstance(event, CheckpointDiscarded) for event in seen)  # there was none yet
    spoil(TrialFolder(place.storage, spec.trial_id).path)
    seen.clear()
    result = run_trial(spec, place, report=seen.append)
    (discarded,) = (event for event in seen if isinstance(event, CheckpointDiscarded))
    assert reason in discarded.reason
    assert result.reproducible() == whole(place, spec).reproducible()


def test_multiply_adds_that_cannot_be_counted_are_a_note(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> float:
        refused()
        return 0.0

    monkeypatch.setattr(attempt, "multiply_adds", fails)
    seen: list[Event] = []
    result = run_trial(one_trial("protocol.epochs=1"), place, report=seen.append)
    assert result.cost.gmacs is None
    assert not any(isinstance(event, OutOfMemory) for event in seen)
    assert any(isinstance(event, Note) and "could not be counted" in event.message for event in seen)
    from cryobench.orchestrator.results.leaderboard import leaderboard_row
    from cryobench.orchestrator.results.run_content import result_metrics

    row = leaderboard_row(TrialFolder(place.storage, result.trial_id), "x", None)
    assert row is not None
    assert row["gmacs"] is None
    assert "gmacs" not in result_metrics(result)


def test_weights_that_float32_cannot_square_are_a_divergence(place: Place, one_trial: Build) -> None:
    """The loss of the only step was taken before its update; it looks well."""
    result = run_trial(one_trial("lr=1e30", "protocol.epochs=1", "protocol.batch_size=8"), place)
    assert result.steps == 0  # no whole epoch
    assert result.status == "diverged"
    assert "Weights reached" in str(result.message)
    assert "in epoch 1 at learning rate 1e+30" in str(result.message)


def test_an_exploding_rate_diverges_in_its_first_epoch(place: Place, one_trial: Build) -> None:
    result = run_trial(one_trial("lr=1e30", "protocol.epochs=1"), place)
    assert result.status == "diverged"
    assert "in epoch 1 at learning rate 1e+30" in str(result.message)


def test_outputs_that_are_no_numbers_are_a_divergence(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = UNet.forward

    def forward(self: UNet, inputs: dict[Any, torch.Tensor]) -> list[torch.Tensor]:
        return [values if self.training else values * float("inf") for values in real(self, inputs)]

    monkeypatch.setattr(UNet, "forward", forward)
    result = run_trial(one_trial("protocol.epochs=1"), place)
    assert result.status == "diverged"
    assert "outputs on val" in str(result.message)


def test_a_folders_name_is_the_trials_id(place: Place, one_trial: Build) -> None:
    spec = one_trial("protocol.epochs=1")
    result = run_trial(spec, place, trial_id="0123456789abcdef")
    assert result.trial_id == "0123456789abcdef"
    assert [path.name for path in (place.storage / "trials").iterdir()] == ["0123456789abcdef"]
    assert TrialFolder(place.storage, "0123456789abcdef").spec() == spec
