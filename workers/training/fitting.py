"""Training what is left of a trial: epochs, validation, saved states, leaving on request, divergence."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from cryobench.conf.errors import InterruptedTrialError
from cryobench.datasets.batches.batch_loader import BatchLoader
from cryobench.workers.model.segmentation import SegmentationModel
from cryobench.workers.record.checkpoint import BestEpoch, Position, TrainingState
from cryobench.workers.record.events import Diverged, EpochFinished
from cryobench.workers.record.result import Metrics
from cryobench.workers.training.attempt_context import AttemptContext
from cryobench.workers.training.divergence import diverged_weights
from cryobench.workers.training.epoch import epoch_start, train_epoch
from cryobench.workers.training.evaluation import evaluate
from cryobench.workers.training.memory import BatchMemoryError, is_out_of_memory
from cryobench.workers.training.metrics import split_metrics
from cryobench.workers.training.trial_data import TrialData


@dataclass(frozen=True)
class Trained:
    """The state after the last whole epoch, and why training ended early, if it did."""

    state: TrainingState
    divergence: str | None = None


class _DivergedError(Exception):
    """The model's numbers are no numbers any more; the message says which."""


class Fitting:
    """The training of one model, from a state on.

    Args:
        context: the attempt.
        model: on its device, as ``state`` says.
        optimizer: likewise.
        data: what the trial reads.
        state: where training stands.
    """

    def __init__(
        self,
        context: AttemptContext,
        model: SegmentationModel,
        optimizer: torch.optim.Optimizer,
        data: TrialData,
        state: TrainingState,
    ) -> None:
        self._context, self._model, self._optimizer, self._data, self._state = context, model, optimizer, data, state
        self._saved = time.monotonic()

    def run(self) -> Trained:
        """All epochs that are left.

        Raises:
            InterruptedTrialError: the attempt was asked to stop; the state is saved.
            BatchMemoryError: a batch did not fit into memory.
        """
        context, epochs = self._context, self._context.spec.protocol.epochs
        with self._data.loader(context.place.resources, context.device) as loader:
            for epoch in range(self._state.epoch + 1, epochs + 1):
                try:
                    self._epoch(epoch, loader)
                except _DivergedError as error:
                    message = f"{error} in epoch {epoch} at learning rate {context.spec.lr:g}."
                    context.record(Diverged(epoch=epoch, message=message))
                    return Trained(self._state, message)
                if epoch < epochs and context.should_stop():
                    raise InterruptedTrialError(f"Stopped after epoch {epoch} of {epochs}.")
        return Trained(self._state)

    def _epoch(self, epoch: int, loader: BatchLoader) -> None:
        """Train, check, validate and save one epoch; `_state` is then the one after it."""
        context, protocol, state = self._context, self._context.spec.protocol, self._state
        began, before = time.monotonic(), state.position.step if state.position else 0
        position = self._train(state.position or epoch_start(context.spec, epoch, context.device), loader)
        with context.timed("training"):  # a GPU may still be at it
            loss = float(position.loss) / len(self._data.sampler)
        seconds = time.monotonic() - began
        if not np.isfinite(loss):
            raise _DivergedError(f"The loss became {loss}")
        if (problem := diverged_weights(self._model)) is not None:
            raise _DivergedError(problem)
        tiles = (len(self._data.sampler) - before) * protocol.batch_size
        rate = self._optimizer.param_groups[0]["lr"]
        finished = EpochFinished(epoch=epoch, loss=loss, lr=rate, seconds=seconds, tiles=tiles)
        best, is_best = state.best, False
        if epoch % protocol.eval_every == 0 or epoch == protocol.epochs:
            found = self._validate(position)
            scores = {
                "val_miou": found.miou,
                "val_mean_f1": found.mean_f1,
                "val_overall_accuracy": found.overall_accuracy,
            }
            finished = finished.model_copy(update=scores)
            is_best = best is None or found.miou > best.val_miou
            if is_best:
                best = BestEpoch(epoch, found.miou)
        self._state = TrainingState(
            epoch,
            self._model.trained_state(),
            self._optimizer.state_dict(),
            [*state.history, finished],
            best,
            micro_batches=state.micro_batches,
        )
        context.note_memory()
        self._save(self._state, is_best)
        context.record(finished)

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
                        micro_batches=self._state.micro_batches,
                        pause=self._is_time_to_save,
                    )
                except Exception as error:
                    if is_out_of_memory(error):
                        raise BatchMemoryError(str(error)) from error
                    raise
            if position.step < steps:
                self._pause(position)
        return position

    def _validate(self, position: Position) -> Metrics:
        try:
            found = evaluate(self._context, self._model, self._data, "val")
        except InterruptedTrialError:
            self._pause(position)
            raise
        if not found.finite:
            raise _DivergedError("The model's outputs on val became infinite or no numbers")
        return split_metrics(found.matrices, self._context.spec.protocol)

    def _is_time_to_save(self) -> bool:
        context = self._context
        return context.should_stop() or time.monotonic() - self._saved > context.place.resources.checkpoint_every_s

    def _pause(self, position: Position) -> None:
        """Save where training stands within an epoch; leave if that is why it paused."""
        stop = self._context.should_stop()
        weights, optimizer = self._model.trained_state(), self._optimizer.state_dict()
        self._save(replace(self._state, model=weights, optimizer=optimizer, position=position), False)
        if stop:
            epochs = self._context.spec.protocol.epochs
            raise InterruptedTrialError(f"Stopped in epoch {position.epoch} of {epochs}, after step {position.step}.")

    def _save(self, state: TrainingState, is_best: bool) -> None:
        with self._context.timed("checkpointing"):
            self._context.checkpoints.save(state, is_best)
        self._saved = time.monotonic()
