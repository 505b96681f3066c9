"""One trial: exact whatever interrupts it, and honest about how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cryobench.conf.errors import (
    BadCheckpointError,
    ConfigError,
    CorruptDataError,
    CryobenchError,
    DiskFullError,
    InterruptedTrialError,
    MissingDataError,
    MissingWeightsError,
    OutOfMemoryError,
    RecordError,
    StoppedEarlyError,
)
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec, TrialWeights
from cryobench.workers.place import Place
from cryobench.workers.record import checkpoint, files
from cryobench.workers.record.events import Event, Failed, StoppedEarly
from cryobench.workers.record.folder import TrialFolder, all_trials
from cryobench.workers.record.result import TrialResult
from cryobench.workers.training import fitting, pictures, testing
from cryobench.workers.training.metrics import metrics
from cryobench.workers.trial import retest_trial, run_trial

Build = Callable[..., TrialSpec]


class Killed(BaseException):
    """Ends the process's work as a signal would: nothing may catch it."""


def losses(place: Place, spec: TrialSpec) -> list[tuple[int, float, float | None]]:
    events = TrialFolder(place.storage, spec.trial_id).epochs()
    return [(e.epoch, e.loss, e.val_miou) for e in events]


@pytest.fixture
def undisturbed(place: Place, one_trial: Build, tmp_path: Path) -> tuple[TrialResult, list[Any]]:
    elsewhere = replace(place, storage=tmp_path / "undisturbed")
    return run_trial(one_trial(), elsewhere), losses(elsewhere, one_trial())


def test_a_trial_leaves_everything_in_its_folder(place: Place, one_trial: Build) -> None:
    spec = one_trial()
    told: list[str] = []
    result = run_trial(spec, place, report=lambda event: told.append(event.event))
    assert "decoding" in told
    told = [name for name in told if name != "decoding"]
    folder = TrialFolder(place.storage, spec.trial_id)
    assert folder.spec() == spec
    assert folder.result() == result
    assert told == ["attempt", "epoch", "epoch", "epoch", "finished"]
    assert [e.event for e in folder.events()] == told
    matrices = np.load(folder.path / "test_confusion.npy")
    assert matrices.dtype == np.int64
    assert matrices.shape == (3, 2, 2)
    assert result.test is not None
    assert metrics(matrices.sum(axis=0)).miou == result.test.miou
    assert result.test.miou_low <= result.test.miou <= result.test.miou_high
    for picture in ("samples.png", "confusion.png"):
        assert (folder.path / picture).read_bytes().startswith(b"\x89PNG")
    assert result.provenance.weights == "scratch"
    assert result.provenance.data_origin.startswith("generated")
    assert result.cost.gmacs is not None
    assert result.cost.gmacs > 0
    assert result.cost.parameters == result.cost.trained_parameters > 0
    assert result.best_val_miou == max(e.val_miou for e in folder.epochs() if e.val_miou is not None)
    assert folder.state().status == "completed"
    assert [f.trial_id for f in all_trials(place.storage)] == [spec.trial_id]
    assert not list(folder.path.glob("latest-*"))  # only the best weights stay


def test_a_finished_trial_is_only_read(place: Place, one_trial: Build) -> None:
    first = run_trial(one_trial(), place)
    assert run_trial(one_trial(), place, report=lambda e: pytest.fail("ran again")) == first


def test_the_same_trial_twice_is_the_same_bit_for_bit(
    place: Place, one_trial: Build, undisturbed: tuple[TrialResult, list[Any]]
) -> None:
    torch.manual_seed(77)  # whatever ran before in this process
    other = replace(place, resources=ResourceSpec(loader_threads=5, prefetch_batches=1))
    assert run_trial(one_trial(), other).reproducible() == undisturbed[0].reproducible()


@pytest.mark.parametrize("after", [1, 2])
def test_stopped_at_an_epoch_and_continued_it_is_the_same(
    place: Place, one_trial: Build, undisturbed: tuple[TrialResult, list[Any]], after: int
) -> None:
    spec, seen = one_trial(), list[Event]()
    with pytest.raises(InterruptedTrialError, match=f"Stopped after epoch {after} of 3"):
        run_trial(spec, place, report=seen.append, should_stop=lambda: getattr(seen[-1], "epoch", 0) == after)
    state = TrialFolder(place.storage, spec.trial_id).state()
    assert (state.status, state.epoch) == ("begun", after)
    assert run_trial(spec, place).reproducible() == undisturbed[0].reproducible()
    assert losses(place, spec) == undisturbed[1]


def test_given_up_it_is_pruned_and_goes_on_to_the_same_end(
    place: Place, one_trial: Build, undisturbed: tuple[TrialResult, list[Any]]
) -> None:
    spec, seen = one_trial(), list[Event]()

    def after_two() -> bool:
        return getattr(seen[-1], "epoch", 0) == 2

    with pytest.raises(StoppedEarlyError, match=r"^behind others$"):
        run_trial(spec, place, report=seen.append, should_stop=after_two, given_up=lambda: "behind others")
    folder = TrialFolder(place.storage, spec.trial_id)
    assert isinstance(seen[-1], StoppedEarly)
    assert (seen[-1].epoch, seen[-1].message) == (2, "behind others")
    assert folder.events()[-1] == seen[-1]
    assert not any(event.event in ("interrupted", "failed") for event in folder.events())
    state = folder.state()
    assert (state.status, state.epoch, state.message) == ("pruned", 2, "behind others")
    assert not state.finished
    assert not state.waits_for_user
    with pytest.raises(ConfigError, match=r"no result yet \(pruned\)"):
        retest_trial(spec.trial_id, place)
    with pytest.raises(InterruptedTrialError):  # taken up again it is begun, not pruned
        run_trial(spec, place, should_stop=lambda: True)
    assert folder.state().status == "begun"
    assert run_trial(spec, place).reproducible() == undisturbed[0].reproducible()
    assert losses(place, spec) == undisturbed[1]


def test_without_a_word_to_stop_nobody_asks_whether_it_is_given_up(place: Place, one_trial: Build) -> None:
    assert run_trial(one_trial(), place, given_up=lambda: "behind others").status == "completed"


@pytest.mark.parametrize("regime", ["frozen", "few_shot"])
def test_a_frozen_trial_resumes_exactly_too(place: Place, one_trial: Build, tmp_path: Path, regime: str) -> None:
    spec = one_trial("encoder=s12_moco_small", f"regime={regime}", "protocol.batch_size=2")
    whole = run_trial(spec, replace(place, storage=tmp_path / "whole"))
    with pytest.raises(InterruptedTrialError):
        run_trial(spec, place, should_stop=lambda: True)
    assert run_trial(spec, place).reproducible() == whole.reproducible()
    assert whole.provenance.weights == "random"
    assert whole.cost.trained_parameters < whole.cost.parameters


#: One name a kind of file, of the first saved state and of the last; states in between come by the clock.
WRITES = ("spec.json", "latest-0001", "best-0001", "state.json", "latest-0003", "state.json 2", "test_confusion.npy")
WRITES += ("samples.png", "confusion.png", "result.json")


@pytest.mark.parametrize("write", WRITES)
def test_killed_in_the_middle_of_any_write_it_ends_the_same(
    place: Place,
    one_trial: Build,
    undisturbed: tuple[TrialResult, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    write: str,
) -> None:
    """Every file is written through `write_whole`; the kill leaves half of the temporary file."""
    real, (name, _, times) = files.write_whole, write.partition(" ")
    left = int(times or 1)

    def torn(path: Path, fill: Callable[[Path], object]) -> None:
        nonlocal left
        left -= path.name.startswith(name)
        if left:
            return real(path, fill)
        half = path.with_name(f".{path.name}.1.tmp")
        fill(half)
        half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
        raise Killed

    for module in (files, checkpoint, pictures, testing):
        monkeypatch.setattr(module, "write_whole", torn)
    with pytest.raises(Killed):
        run_trial(one_trial(), place)
    monkeypatch.undo()
    assert TrialFolder(place.storage, one_trial().trial_id).result() is None
    assert run_trial(one_trial(), place).reproducible() == undisturbed[0].reproducible()
    assert losses(place, one_trial()) == undisturbed[1]


def test_a_damaged_checkpoint_is_never_continued_from(
    place: Place, one_trial: Build, undisturbed: tuple[TrialResult, list[Any]]
) -> None:
    spec = one_trial()
    with pytest.raises(InterruptedTrialError):
        run_trial(spec, place, should_stop=lambda: True)
    (latest,) = TrialFolder(place.storage, spec.trial_id).path.glob("latest-*.safetensors")
    content = bytearray(latest.read_bytes())
    content[-100] ^= 1
    latest.write_bytes(content)
    assert run_trial(spec, place).reproducible() == undisturbed[0].reproducible()


def test_killed_for_real_and_continued_it_is_the_same(place: Place, one_trial: Build) -> None:
    spec = one_trial("protocol.epochs=8")
    whole = run_trial(spec, replace(place, storage=place.storage.parent / "whole"))
    path = place.storage.parent / "spec.json"
    path.write_text(spec.model_dump_json())
    command = [sys.executable, "-c", "from cryobench.orchestrator.cli import main; main()", "trial", "run", str(path)]
    command += ["--device", "cpu", "--storage", str(place.storage), "--data-dir", str(place.data_dir)]
    command += ["--cache-dir", str(place.cache_dir)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    folder = TrialFolder(place.storage, spec.trial_id)
    deadline = time.monotonic() + 60
    while not (folder.path / "events.jsonl").exists() or len(folder.epochs()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.result() is None
    assert run_trial(spec, place).reproducible() == whole.reproducible()


def test_an_exploding_rate_diverges_and_its_best_state_is_tested(place: Place, one_trial: Build) -> None:
    spec = one_trial("lr=1e25", "protocol.epochs=6", "protocol.lr_milestones=[]")
    result = run_trial(spec, place)
    assert result.status == "diverged"
    assert "at learning rate 1e+25" in str(result.message)
    assert result.epochs < 6
    assert (result.test is None) == (result.best_epoch is None)
    state = TrialFolder(place.storage, spec.trial_id).state()
    assert state.finished
    assert run_trial(spec, place) == result


def ended(place: Place, spec: TrialSpec) -> tuple[str, str | None]:
    state = TrialFolder(place.storage, spec.trial_id).state()
    return state.status, state.kind


def test_corrupt_tiles_are_named(place: Place, one_trial: Build, tmp_path: Path) -> None:
    spec = one_trial()
    shutil.copytree(place.data_dir / "glid.zarr", tmp_path / "bad" / "glid.zarr")
    chunk = tmp_path / "bad" / "glid.zarr" / "train" / "optical" / "c" / "2" / "0" / "0" / "0"
    chunk.write_bytes(b"x" + chunk.read_bytes()[1:])
    with pytest.raises(CorruptDataError, match=r"tile 2 of train/optical \(train/images/0002.tif\)"):
        run_trial(spec, replace(place, data_dir=tmp_path / "bad"))
    assert ended(place, spec) == ("failed", "corrupt_data")
    assert TrialFolder(place.storage, spec.trial_id).state().waits_for_user
    assert run_trial(spec, place).status == "completed"  # with the right data it runs


def test_other_data_than_planned_is_refused(place: Place, one_trial: Build, tmp_path: Path) -> None:
    shutil.copytree(place.data_dir / "caffe.zarr", tmp_path / "bad" / "glid.zarr")
    with pytest.raises(CorruptDataError, match="the trial was planned with"):
        run_trial(one_trial(), replace(place, data_dir=tmp_path / "bad"))
    with pytest.raises(MissingDataError, match="No tile store"):
        run_trial(one_trial(), replace(place, data_dir=tmp_path / "none"))


def published(spec: TrialSpec) -> TrialSpec:
    weights = TrialWeights(kind="published", digest="0" * 64, file="x.pth", layout={})  # type: ignore[arg-type]
    return spec.model_copy(update={"encoder": spec.encoder.model_copy(update={"weights": weights})})


def test_missing_and_wrong_weights_are_kinds_of_failure(place: Place, one_trial: Build) -> None:
    spec = published(one_trial("encoder=s12_moco_small"))
    with pytest.raises(MissingWeightsError, match=r"No weights file .*x.pth"):
        run_trial(spec, place)
    assert ended(place, spec) == ("failed", "missing_weights")
    assert place.weights_dir is not None
    place.weights_dir.mkdir()
    (place.weights_dir / "x.pth").write_bytes(b"nonsense")
    with pytest.raises(BadCheckpointError, match="the trial was planned with"):
        run_trial(spec, place)
    assert ended(place, spec) == ("failed", "bad_checkpoint")
    with pytest.raises(CryobenchError, match="the trial was planned with"):
        run_trial(spec, place, retry_failed=False)


def test_a_full_disk_ends_a_trial_that_continues_later(
    place: Place, one_trial: Build, undisturbed: tuple[TrialResult, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        real(tensors, path)
        if "latest-0003" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    at_once = replace(place, resources=ResourceSpec(storage_patience_s=0))
    with pytest.raises(DiskFullError, match="No space left while writing .*latest-0003.*run the same command again"):
        run_trial(one_trial(), at_once)
    monkeypatch.undo()
    folder = TrialFolder(place.storage, one_trial().trial_id)
    assert ended(place, one_trial()) == ("failed", "disk_full")
    assert not folder.state().waits_for_user
    assert not list(folder.path.glob(".latest*"))
    assert run_trial(one_trial(), place).reproducible() == undisturbed[0].reproducible()


def test_exhausted_memory_says_what_to_do(place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object, **__: object) -> float:
        torch.empty(2**58, dtype=torch.uint8)
        return 0.0

    monkeypatch.setattr(fitting, "train_epoch", hungry)
    with pytest.raises(OutOfMemoryError, match="Out of memory with batches of 4 crops"):
        run_trial(one_trial(), place)
    assert ended(place, one_trial()) == ("failed", "out_of_memory")


def test_an_unexpected_error_is_recorded_and_retried(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> float:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(fitting, "train_epoch", broken)
    with pytest.raises(ZeroDivisionError):
        run_trial(one_trial(), place)
    folder = TrialFolder(place.storage, one_trial().trial_id)
    assert folder.state().kind == "crashed"
    assert not folder.state().waits_for_user
    last = folder.events()[-1]
    assert isinstance(last, Failed)
    assert "in broken" in last.trace


def test_too_few_tiles_for_a_batch_is_explained(place: Place, one_trial: Build) -> None:
    with pytest.raises(ConfigError, match="Lower protocol.batch_size"):
        run_trial(one_trial("protocol.batch_size=64"), place)


def test_a_damaged_result_is_explained(place: Place, one_trial: Build) -> None:
    run_trial(one_trial(), place)
    path = place.storage / "trials" / one_trial().trial_id / "result.json"
    path.write_text(json.dumps({"trial_id": "x"}))
    with pytest.raises(RecordError, match=r"result.json is not a whole result.*remove it and run"):
        run_trial(one_trial(), place)


def test_event_lines_survive_a_torn_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    files.append_line(path, {"event": "a"})
    with path.open("ab") as file:
        file.write(b'{"event": "tor')
    files.append_line(path, {"event": "b"})
    assert [e["event"] for e in files.read_lines(path)] == ["a", "b"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"value": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        files.write_json(path, {"value": 2})
    assert json.loads(path.read_text()) == {"value": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
