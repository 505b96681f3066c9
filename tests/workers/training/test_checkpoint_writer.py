"""States are saved beside training: from copies, one at a time, nothing that is needed is lost, no error unheard."""

import gc
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cryobench.conf.errors import DiskFullError
from cryobench.conf.trial import TrialSpec
from cryobench.workers.place import Place
from cryobench.workers.record import checkpoint
from cryobench.workers.record.checkpoint import BestEpoch, Checkpoints, Progress, TrainingState
from cryobench.workers.record.events import EpochFinished, Event, Resumed
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.training import fitting
from cryobench.workers.training.checkpoint_writer import CheckpointWriter
from cryobench.workers.trial import run_trial

Build = Callable[..., TrialSpec]
EMPTY: dict[str, Any] = {"state": {}, "param_groups": [{"lr": 0.1}]}


def state_of(epoch: int, best: int = 1) -> TrainingState:
    history = tuple(EpochFinished(epoch=e, loss=1.0, lr=0.1, seconds=1.0) for e in range(1, epoch + 1))
    progress = Progress(epoch, history, BestEpoch(best, 50.0))
    return TrainingState(progress, {"weight": torch.full((3,), float(epoch))}, EMPTY)


class Gate:
    """Lets the thread write one file at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self._open, real = threading.Semaphore(0), checkpoint.save_file
        self.at_gate = threading.Semaphore(0)

        def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
            self.begun.append(path.name.split(".")[1])
            self.at_gate.release()
            assert self._open.acquire(timeout=30)
            real(tensors, path)

        monkeypatch.setattr(checkpoint, "save_file", save_file)

    def let(self, files: int) -> None:
        for _ in range(files):
            self._open.release()

    def wait(self) -> None:
        assert self.at_gate.acquire(timeout=30)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(monkeypatch)
    yield found
    found.let(100)


def written(folder: Path) -> tuple[int, float, float]:
    """Epoch of the latest state, and the values of the latest and of the best weights."""
    checkpoints = Checkpoints(folder)
    state = checkpoints.latest()
    assert state is not None
    return state.progress.epoch, float(state.model["weight"][0]), float(checkpoints.best()["weight"][0])


def test_a_state_is_a_copy_and_an_offer_is_refused_while_one_is_on_its_way(tmp_path: Path, gate: Gate) -> None:
    with CheckpointWriter(Checkpoints(tmp_path)) as writer:
        state = state_of(1)
        writer.save(state, is_best=True)
        gate.wait()
        state.model["weight"].fill_(-1.0)  # training goes on
        assert not writer.offer(state_of(2))
        gate.let(2)
        writer.flush()
        assert writer.offer(state_of(3))
        gate.let(1)
    assert written(tmp_path) == (3, 3.0, 1.0)
    assert gate.begun == ["latest-0001-000000", "best-0001", "latest-0003-000000"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_checkpoints_can_be_read_by_whom_the_umask_lets(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        Checkpoints(tmp_path).save(state_of(1), is_best=True)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
    finally:
        os.umask(before)


def test_of_states_that_wait_only_the_newest_is_written_and_best_weights_are_never_lost(
    tmp_path: Path, gate: Gate
) -> None:
    uploading, go_on = threading.Event(), threading.Event()

    def upload() -> None:
        uploading.set()
        assert go_on.wait(30)

    with CheckpointWriter(Checkpoints(tmp_path), upload) as writer:
        gate.let(2)
        writer.save(state_of(1), is_best=True)
        assert uploading.wait(30)
        writer.wait_until_written()
        assert writer.busy
        writer.save(state_of(2, best=2), is_best=True)  # waits for the upload
        writer.save(state_of(3, best=3), is_best=True)  # and is better
        gate.let(3)
        threading.Timer(0.1, go_on.set).start()
        writer.save(state_of(4, best=3), is_best=False)  # has to wait, or the third one's weights were lost
        writer.flush()
    assert written(tmp_path) == (4, 4.0, 3.0)
    assert gate.begun == [
        "latest-0001-000000",
        "best-0001",
        "latest-0003-000000",
        "best-0003",
        "latest-0004-000000",
    ]


def test_what_goes_wrong_is_raised_in_the_thread_that_trains_and_the_state_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        real(tensors, path)
        if "latest-0002" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)

    def three() -> None:
        with CheckpointWriter(Checkpoints(tmp_path)) as writer:
            writer.save(state_of(1), is_best=True)
            writer.flush()
            writer.save(state_of(2), is_best=False)
            with pytest.raises(DiskFullError):
                writer.flush()
            assert writer.failed
            writer.save(state_of(3), is_best=False)

    with pytest.raises(DiskFullError, match="No space left while writing .*latest-0002"):
        three()
    assert written(tmp_path) == (1, 1.0, 1.0)


def test_an_upload_that_fails_is_heard_at_the_end_at_the_latest(tmp_path: Path) -> None:
    def upload() -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"), CheckpointWriter(Checkpoints(tmp_path), upload) as writer:
        writer.save(state_of(1), is_best=True)
    assert written(tmp_path) == (1, 1.0, 1.0)


class Killed(BaseException):
    """Ends the process's work as a signal would: nothing may catch it."""


def test_epochs_after_the_last_saved_state_are_repeated_to_the_same_end(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five epochs only the second is saved, the first that is validated; the trial is killed after the third."""
    monkeypatch.setattr(fitting, "_TIMES_ITS_COST", 1e9)
    monkeypatch.setattr(CheckpointWriter, "offer", lambda *_: False)
    spec = one_trial("protocol.epochs=5", "protocol.eval_every=2", "encoder=s12_moco_small", "regime=frozen")
    elsewhere = replace(place, storage=place.storage.parent / "whole")
    whole, folder = run_trial(spec, elsewhere), TrialFolder(place.storage, spec.trial_id)

    def die(event: Event) -> None:
        if isinstance(event, EpochFinished) and event.epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        run_trial(spec, place, report=die)
    assert json.loads((folder.path / "state.json").read_text())["training"]["epoch"] == 2
    (latest,) = folder.path.glob("latest-*.safetensors")
    assert not any(name.startswith("model.encoder.") for name in load_file(latest))  # what is frozen is not written
    result = run_trial(spec, place)
    epochs = [e.epoch for e in folder.events() if isinstance(e, EpochFinished)]
    assert epochs == [1, 2, 3, 3, 4, 5]
    assert [(e.epoch, e.step) for e in folder.events() if isinstance(e, Resumed)] == [(2, 0)]
    assert result.reproducible() == whole.reproducible()

    def history(trials: Path) -> list[dict[str, Any]]:
        return [e.values() | {"seconds": 0} for e in TrialFolder(trials, spec.trial_id).epochs()]

    assert history(place.storage) == history(elsewhere.storage)


def test_a_resumed_trial_does_not_keep_its_checkpoint(
    place: Place, one_trial: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, seen = one_trial("protocol.epochs=2"), list[Event]()
    with pytest.raises(Exception, match="Stopped after epoch 1 of 2"):
        run_trial(spec, place, report=seen.append, should_stop=lambda: getattr(seen[-1], "epoch", 0) == 1)
    real, loaded = Checkpoints.latest, list[Any]()

    def latest(self: Checkpoints) -> TrainingState | None:
        state = real(self)
        assert state is not None
        loaded.extend(weakref.ref(tensor) for tensor in state.model.values())
        return state

    def in_training(self: fitting.Fitting, position: Any, loader: Any) -> Any:
        gc.collect()
        assert loaded
        assert all(reference() is None for reference in loaded)
        return train(self, position, loader)

    train = fitting.Fitting._train
    monkeypatch.setattr(Checkpoints, "latest", latest)
    monkeypatch.setattr(fitting.Fitting, "_train", in_training)
    assert run_trial(spec, place).epochs == 2
