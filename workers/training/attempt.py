"""One attempt at a trial: from its last checkpoint, or the start, to its result."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from cryobench.conf.errors import InterruptedTrialError
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.store.location import below
from cryobench.workers.model.build import build_model
from cryobench.workers.model.segmentation import SegmentationModel, set_precision
from cryobench.workers.place import Place
from cryobench.workers.record.checkpoint import BestEpoch, Checkpoints, Position, TrainingState, weights_digest
from cryobench.workers.record.events import (
    CheckpointDiscarded,
    Decoding,
    Diverged,
    EpochFinished,
    Finished,
    Note,
    OutOfMemory,
    Report,
    Resumed,
)
from cryobench.workers.record.files import write_whole
from cryobench.workers.record.folder import CONFUSION, CONFUSION_PICTURE, SAMPLES_PICTURE, TrialFolder
from cryobench.workers.record.result import TestMetrics, TrialResult
from cryobench.workers.training.epoch import epoch_start, make_optimizer, train_epoch
from cryobench.workers.training.evaluation import evaluate
from cryobench.workers.training.memory import is_out_of_memory
from cryobench.workers.training.metrics import bootstrap_miou, split_metrics
from cryobench.workers.training.pictures import save_confusion, save_samples
from cryobench.workers.training.summary import summary
from cryobench.workers.training.trial_data import TrialData, open_data

_PICTURED = 4
#: Parts of a batch after one did not fit into memory; a part holds two crops at least, for batch norm.
_MICRO_BATCHES = 4
_TELL_EVERY_S = 1.0


class Attempt:
    """A trial being run.

    Args:
        spec: the trial.
        place: where its data, weights and folder are, and what it may use.
        folder: its folder, locked.
        report: told every event as it is recorded.
        should_stop: asked after every step and evaluated tile; True leaves the trial resumable.
    """

    def __init__(
        self, spec: TrialSpec, place: Place, folder: TrialFolder, report: Report, should_stop: Callable[[], bool]
    ) -> None:
        self.spec, self.place, self.folder = spec, place, folder
        self.device = place.torch_device()
        self.report, self.should_stop = report, should_stop
        self.checkpoints = Checkpoints(folder.path)
        self.started = self.saved = time.monotonic()
        self.seconds = dict.fromkeys(("data", "training", "evaluation", "checkpointing"), 0.0)
        self.peak_memory_mb = 0.0

    def run(self) -> TrialResult:
        """Train what is left, test, and write the result."""
        torch.set_num_threads(self.spec.protocol.cpu_threads)
        set_precision(self.spec.protocol.precision, self.spec.protocol.deterministic)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        data = self.open_data()
        resumed = self.checkpoints.latest()
        parts = resumed.micro_batches if resumed else 1
        try:
            return self._run(data, resumed, parts)
        except Exception as error:
            if parts > 1 or self.spec.protocol.batch_size < 4 or not is_out_of_memory(error):
                raise
        # Out here nothing holds what the attempt had in memory. All of the trial is to be made the same way.
        parts = min(_MICRO_BATCHES, self.spec.protocol.batch_size // 2)
        self.report(self.folder.record(OutOfMemory(micro_batches=parts)))
        self.checkpoints.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._run(data, None, parts)

    def retest(self) -> TestMetrics:
        """Test the best checkpoint again; nothing is written.

        Raises:
            BadCheckpointError: it is not there or damaged.
        """
        torch.set_num_threads(self.spec.protocol.cpu_threads)
        set_precision(self.spec.protocol.precision, self.spec.protocol.deterministic)
        data = self.open_data()
        model = self._build(data)
        model.load_trained_state(self.checkpoints.best())
        return self._test(model, data)

    def open_data(self) -> TrialData:
        """The trial's data, with news of what takes long."""
        told = 0.0

        def decoding(done: int, total: int) -> None:
            nonlocal told
            if done == total or time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                self.report(Decoding(decoded=done, tiles=total))

        with self._timed("data"):
            store = below(self.place.data_dir, f"{self.spec.dataset.name}.zarr")
            data = open_data(
                self.spec,
                store,
                self.place.cache_dir,
                self.place.resources,
                decoding,
                lambda text: self.report(self.folder.record(Note(message=text))),
            )
            data.preprocess.to(self.device)
        return data

    def _build(self, data: TrialData) -> SegmentationModel:
        model = build_model(self.spec, len(data.info.classes), self.place.weights_dir).to(self.device)
        if self.spec.protocol.compile:
            model.compile()
        return model

    def _run(self, data: TrialData, resumed: TrainingState | None, parts: int) -> TrialResult:
        model = self._build(data)
        state, diverged = self._train(model, data, resumed, parts)
        return self._finish(model, data, state, diverged)

    def _train(
        self, model: SegmentationModel, data: TrialData, resumed: TrainingState | None, parts: int
    ) -> tuple[TrainingState, str | None]:
        """All epochs that are left; the last whole state, and why training ended early if it did."""
        spec, protocol, steps = self.spec, self.spec.protocol, len(data.sampler)
        optimizer = make_optimizer(model, spec)
        state = self._resume(model, optimizer, resumed) or TrainingState(
            0, model.trained_state(), optimizer.state_dict(), [], None, micro_batches=parts
        )
        with data.loader(self.place.resources, self.device) as loader:
            for epoch in range(state.epoch + 1, protocol.epochs + 1):
                began = time.monotonic()
                position = state.position or epoch_start(spec, epoch, self.device)
                while position.step < steps:
                    with self._timed("training"):
                        position = train_epoch(
                            model,
                            optimizer,
                            data,
                            loader,
                            spec,
                            self.device,
                            position,
                            micro_batches=parts,
                            pause=self._is_time_to_save,
                        )
                    if position.step < steps:
                        self._pause(state, model, optimizer, position)
                with self._timed("training"):  # a GPU may still be at it
                    loss = float(position.loss) / steps
                seconds = time.monotonic() - began
                if not np.isfinite(loss):
                    self.report(self.folder.record(Diverged(epoch=epoch)))
                    return state, f"The loss became {loss} in epoch {epoch} at learning rate {spec.lr:g}."
                rate = optimizer.param_groups[0]["lr"]
                entry = EpochFinished(epoch=epoch, loss=loss, lr=rate, seconds=seconds)
                best, is_best = state.best, False
                if epoch % protocol.eval_every == 0 or epoch == protocol.epochs:
                    try:
                        matrices, _ = self._evaluate(model, data, "val")
                    except InterruptedTrialError:
                        self._pause(state, model, optimizer, position)
                        raise
                    found = split_metrics(matrices, protocol)
                    scores = {
                        "val_miou": found.miou,
                        "val_mean_f1": found.mean_f1,
                        "val_overall_accuracy": found.overall_accuracy,
                    }
                    entry = entry.model_copy(update=scores)
                    is_best = best is None or found.miou > best.val_miou
                    if is_best:
                        best = BestEpoch(epoch, found.miou)
                state = TrainingState(
                    epoch,
                    model.trained_state(),
                    optimizer.state_dict(),
                    [*state.history, entry],
                    best,
                    micro_batches=parts,
                )
                self._note_memory()
                self._save(state, is_best)
                self.report(self.folder.record(entry))
                if epoch < protocol.epochs and self.should_stop():
                    raise InterruptedTrialError(f"Stopped after epoch {epoch} of {protocol.epochs}.")
        return state, None

    def _resume(
        self, model: SegmentationModel, optimizer: torch.optim.Optimizer, state: TrainingState | None
    ) -> TrainingState | None:
        if state is None:
            return None
        try:
            model.load_trained_state(state.model)
            optimizer.load_state_dict(state.optimizer)
        except (KeyError, RuntimeError, ValueError) as error:
            self.report(self.folder.record(CheckpointDiscarded(reason=str(error)[:300])))
            return None
        recorded = {event.epoch for event in self.folder.epochs()}
        for entry in state.history:
            if entry.epoch not in recorded:
                self.report(self.folder.record(entry))
        step = state.position.step if state.position else 0
        self.report(self.folder.record(Resumed(epoch=state.epoch, step=step)))
        return state

    def _is_time_to_save(self) -> bool:
        return self.should_stop() or time.monotonic() - self.saved > self.place.resources.checkpoint_every_s

    def _pause(
        self, state: TrainingState, model: SegmentationModel, optimizer: torch.optim.Optimizer, position: Position
    ) -> None:
        """Save where training stands within an epoch; leave if that is why it paused."""
        stop = self.should_stop()
        partly = TrainingState(
            state.epoch,
            model.trained_state(),
            optimizer.state_dict(),
            state.history,
            state.best,
            position,
            state.micro_batches,
        )
        self._save(partly, False)
        if stop:
            raise InterruptedTrialError(
                f"Stopped in epoch {position.epoch} of {self.spec.protocol.epochs}, after step {position.step}."
            )

    def _save(self, state: TrainingState, is_best: bool) -> None:
        with self._timed("checkpointing"):
            self.checkpoints.save(state, is_best)
        self.saved = time.monotonic()

    def _finish(
        self, model: SegmentationModel, data: TrialData, state: TrainingState, diverged: str | None
    ) -> TrialResult:
        final = weights_digest(state.model)
        test, best_weights = None, None
        if state.best is not None:
            weights = self.checkpoints.best()
            model.load_trained_state(weights)
            best_weights = weights_digest(weights)
            test = self._test(model, data, keep=True)
        result = summary(
            self.spec,
            data,
            model,
            state,
            self.device,
            diverged=diverged,
            final_weights=final,
            best_weights=best_weights,
            test=test,
            seconds={"total": time.monotonic() - self.started, **self.seconds},
            peak_memory_mb=self.peak_memory_mb,
        )
        self.folder.write_result(result)
        self.checkpoints.drop_latest()
        self.report(self.folder.record(Finished(status=result.status)))
        return result

    def _test(self, model: SegmentationModel, data: TrialData, keep: bool = False) -> TestMetrics:
        """Metrics on the test split; ``keep`` leaves matrices and pictures in the folder."""
        spec, info = self.spec, data.info
        count = info.splits["test"].tiles
        pictured = sorted({i * count // _PICTURED for i in range(_PICTURED)}) if keep else []
        matrices, samples = self._evaluate(model, data, "test", pictured)
        self._note_memory()
        if keep:
            write_whole(self.folder.path / CONFUSION, lambda path: _save_array(path, matrices))
            save_samples(self.folder.path / SAMPLES_PICTURE, samples, info.classes, spec.label)
            save_confusion(self.folder.path / CONFUSION_PICTURE, matrices.sum(axis=0), info.classes, spec.label)
        low, high = bootstrap_miou(matrices, spec.protocol.bootstrap_samples, spec.seed)
        found = split_metrics(matrices, spec.protocol)
        return TestMetrics(**found.model_dump(), miou_low=low, miou_high=high)

    def _evaluate(self, model: SegmentationModel, data: TrialData, split: Any, keep: list[int] | None = None) -> Any:
        def check() -> None:
            if self.should_stop():
                raise InterruptedTrialError(f"Stopped while evaluating on {split}.")

        with self._timed("evaluation"):
            stall = self.place.resources.stall_timeout_s
            return evaluate(model, data, split, self.spec, self.device, keep or (), check=check, stall_s=stall)

    def _note_memory(self) -> None:
        if self.device.type == "cuda":
            used = float(torch.cuda.max_memory_allocated(self.device))
        else:  # pages of the node cache belong to the kernel, which takes them back when it needs them
            memory = psutil.Process().memory_info()
            used = float(memory.rss - getattr(memory, "shared", 0))
        self.peak_memory_mb = max(self.peak_memory_mb, used / 1e6)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] += time.monotonic() - began


def _save_array(path: Path, values: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.save(file, values)
