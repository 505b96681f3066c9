"""Training what is left of a trial: epochs, validation, saved states, leaving on request, divergence."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from cryobench.conf.errors import InterruptedTrialError
from cryobench.datasets.batches.batch_loader import BatchLoader
from cryobench.workers.model.segmentation import SegmentationModel
from cryobench.workers.record.checkpoint import BestEpoch, Position, Progress, TrainingState
from cryobench.workers.record.events import Diverged, EpochFinished
from cryobench.workers.record.result import Metrics
from cryobench.workers.training.attempt_context import AttemptContext
from cryobench.workers.training.checkpoint_writer import CheckpointWriter
from cryobench.workers.training.divergence import diverged_weights
from cryobench.workers.training.epoch import epoch_start, train_epoch
from cryobench.workers.training.evaluation import evaluate
from cryobench.workers.training.memory import BatchMemoryError, is_out_of_memory
from cryobench.workers.training.metrics import split_metrics
from cryobench.workers.training.trial_data import TrialData

#: After an epoch a state is saved once this many times as long has passed as the last one took to be written and
#: uploaded: saving takes a twentieth of the time at most, and trials whose states are small lose next to nothing.
_TIMES_ITS_COST = 20.0


@dataclass(frozen=True)
class Trained:
    """How far training came, in whole epochs, and why it ended early, if it did."""

    progress: Progress
    divergence: str | None = None


class _DivergedError(Exception):
    """The model's numbers are no numbers any more; the message says which."""


class Fitting:
    """The training of one model, from a state on.

    Args:
        context: the attempt.
        model: on its device, as training left it at ``progress``.
        optimizer: likewise.
        data: what the trial reads.
        progress: where training stands.
        writer: saves states beside it.
    """

    def __init__(
        self,
        context: AttemptContext,
        model: SegmentationModel,
        optimizer: torch.optim.Optimizer,
        data: TrialData,
        progress: Progress,
        writer: CheckpointWriter,
    ) -> None:
        self._context, self._model, self._optimizer, self._data = context, model, optimizer, data
        self._progress, self._writer = progress, writer
        self._saved, self._is_saved = time.monotonic(), False

    def run(self) -> Trained:
        """All epochs that are left. The state after the last one is saved, or on its way.

        Raises:
            InterruptedTrialError: the attempt was asked to stop; the state is saved and uploaded.
            BatchMemoryError: a batch did not fit into memory.
        """
        context, epochs = self._context, self._context.spec.protocol.epochs
        with self._data.loader(context.place.resources, context.device) as loader:
            for epoch in range(self._progress.epoch + 1, epochs + 1):
                try:
                    self._epoch(epoch, loader)
                except _DivergedError as error:
                    message = f"{error} in epoch {epoch} at learning rate {context.spec.lr:g}."
                    context.record(Diverged(epoch=epoch, message=message))
                    return Trained(self._progress, message)
                if epoch < epochs and context.should_stop():
                    self._save_and_wait()
                    raise InterruptedTrialError(f"Stopped after epoch {epoch} of {epochs}.")
        return Trained(self._progress)

    def _epoch(self, epoch: int, loader: BatchLoader) -> None:
        """Train, check and validate one epoch, and save the state after it where that is due."""
        context, protocol, before = self._context, self._context.spec.protocol, self._progress
        began, done = time.monotonic(), before.position.step if before.position else 0
        position = self._train(before.position or epoch_start(context.spec, epoch, context.device), loader)
        with context.timed("training"):  # a GPU may still be at it
            loss = float(position.loss) / len(self._data.sampler)
        seconds = time.monotonic() - began
        if not np.isfinite(loss):
            raise _DivergedError(f"The loss became {loss}")
        if (problem := diverged_weights(self._model)) is not None:
            raise _DivergedError(problem)
        tiles = (len(self._data.sampler) - done) * protocol.batch_size
        rate = self._optimizer.param_groups[0]["lr"]
        finished = EpochFinished(epoch=epoch, loss=loss, lr=rate, seconds=seconds, tiles=tiles)
        best, is_best = before.best, False
        if epoch % protocol.eval_every == 0 or epoch == protocol.epochs:
            found = self._validate()
            scores = {
                "val_miou": found.miou,
                "val_mean_f1": found.mean_f1,
                "val_overall_accuracy": found.overall_accuracy,
            }
            finished = finished.model_copy(update=scores)
            is_best = best is None or found.miou > best.val_miou
            if is_best:
                best = BestEpoch(epoch, found.miou)
        history = (*before.history, finished)
        self._progress = Progress(epoch, history, best, micro_batches=before.micro_batches)
        context.note_memory()
        self._save_epoch(is_best)
        context.record(finished)
        self._writer.upload()

    def _train(self, position: Position, loader: BatchLoader) -> Position:
        """The epoch's steps that are left; the state is saved in between by the clock, or to leave."""
        context, steps = self._context, len(self._data.sampler)
        while position.step < steps:
            with context.timed("training"):
                try:
                    position = train_epoch(
                        self._model,
                        self._optimizer,
                        self._data,
                        loader,
                        context.spec,
                        context.device,
                        position,
                        micro_batches=self._progress.micro_batches,
                        pause=self._is_time_to_save,
                    )
                except Exception as error:
                    if is_out_of_memory(error):
                        raise BatchMemoryError(str(error)) from error
                    raise
            if position.step < steps:
                self._pause(position)
        self._progress = replace(self._progress, position=position)
        return position

    def _validate(self) -> Metrics:
        try:
            found = evaluate(self._context, self._model, self._data, "val")
        except InterruptedTrialError:
            self._is_saved = False
            self._save_and_wait()
            raise
        if not found.finite:
            raise _DivergedError("The model's outputs on val became infinite or no numbers")
        return split_metrics(found.matrices, self._context.spec.protocol)

    def _pause(self, position: Position) -> None:
        """Save where training stands within an epoch; leave if that is why it paused."""
        self._progress, self._is_saved = replace(self._progress, position=position), False
        if self._context.should_stop():
            self._save_and_wait()
            epochs = self._context.spec.protocol.epochs
            raise InterruptedTrialError(f"Stopped in epoch {position.epoch} of {epochs}, after step {position.step}.")
        self._offer()

    def _is_time_to_save(self) -> bool:
        """Whether to pause after a step."""
        due = self._waited() > self._context.place.resources.checkpoint_every_s
        return self._context.should_stop() or self._writer.failed or (due and not self._writer.busy)

    def _save_epoch(self, is_best: bool) -> None:
        """Save the state after an epoch: always if it is the best or the last, else when it is due."""
        self._is_saved = False
        if is_best or self._progress.epoch == self._context.spec.protocol.epochs:
            self._save(is_best)
        elif self._waited() > min(
            self._context.place.resources.checkpoint_every_s, _TIMES_ITS_COST * self._writer.cost_s
        ):
            self._offer()

    def _save_and_wait(self) -> None:
        """Before leaving: the state as it is, down to the disk and the object store."""
        if not self._is_saved:
            self._save(is_best=False)
        with self._context.timed("checkpointing"):
            self._writer.flush()

    def _save(self, is_best: bool) -> None:
        with self._context.timed("checkpointing"):
            self._writer.save(self._state(), is_best)
        self._saved, self._is_saved = time.monotonic(), True

    def _offer(self) -> None:
        with self._context.timed("checkpointing"):
            taken = self._writer.offer(self._state())
        if taken:
            self._saved, self._is_saved = time.monotonic(), True

    def _state(self) -> TrainingState:
        return TrainingState(self._progress, self._model.trained_state(), self._optimizer.state_dict())

    def _waited(self) -> float:
        return time.monotonic() - self._saved
