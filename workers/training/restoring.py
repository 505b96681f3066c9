"""Going on from a checkpoint: whole, or not at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cryobench.workers.model.segmentation import SegmentationModel
from cryobench.workers.record.checkpoint import Progress, TrainingState, UnusableCheckpointError
from cryobench.workers.record.events import CheckpointDiscarded, Resumed
from cryobench.workers.training.attempt_context import AttemptContext

#: What a group of the optimizer has to say of itself; what else it says varies between releases of torch.
_OPTIONS = {"lr", "scale", "betas", "eps", "weight_decay"}


def restore(
    context: AttemptContext, model: SegmentationModel, optimizer: torch.optim.Optimizer, steps: int
) -> Progress | None:
    """Bring model and optimizer to the trial's checkpoint; None leaves both as they are, untouched.

    Everything is checked before anything is loaded, so that a checkpoint that does not fit leaves nothing behind. Why
    one was discarded is recorded; that none was ever written is no event. The checkpoint's tensors are not kept.

    Args:
        context: the attempt.
        model: as built.
        optimizer: as made for it.
        steps: steps an epoch.
    """
    try:
        state = context.checkpoints.latest()
        if state is None:
            return None
        check_fit(state, model, optimizer, steps, context.spec.protocol.epochs)
    except UnusableCheckpointError as error:
        context.checkpoints.forget()
        context.record(CheckpointDiscarded(reason=str(error)[:300]))
        return None
    model.load_trained_state(state.model)
    optimizer.load_state_dict(state.optimizer)
    progress = state.progress
    recorded = {event.epoch for event in context.folder.epochs()}
    for finished in progress.history:
        if finished.epoch not in recorded:
            context.record(finished)
    context.record(Resumed(epoch=progress.epoch, step=progress.position.step if progress.position else 0))
    return progress


def check_fit(
    state: TrainingState, model: SegmentationModel, optimizer: torch.optim.Optimizer, steps: int, epochs: int
) -> None:
    """Check that a state can be loaded and gone on from.

    Raises:
        UnusableCheckpointError: it cannot; says what does not fit.
    """
    _check_tensors("model", _forms(state.model), _forms(model.trained_state()))
    now = optimizer.state_dict()["param_groups"]
    then = state.optimizer["param_groups"]
    if [g["params"] for g in then] != [g["params"] for g in now] or any(not g.keys() >= _OPTIONS for g in then):
        raise UnusableCheckpointError(f"the optimizer's {len(then)} groups are not the {len(now)} of this model")
    _check_moments(state, [p for group in optimizer.param_groups for p in group["params"]])
    epoch, history, position = state.progress.epoch, state.progress.history, state.progress.position
    if not 0 <= epoch <= epochs or [e.epoch for e in history] != list(range(1, epoch + 1)):
        raise UnusableCheckpointError(f"epoch {epoch} of {epochs} with a history of {len(history)} epochs")
    if position is not None:
        if position.epoch != epoch + 1 or not 0 <= position.step <= steps or position.epoch > epochs:
            raise UnusableCheckpointError(f"step {position.step} of {steps} in epoch {position.epoch} of {epochs}")
        random = torch.get_rng_state()
        if _form(position.cpu_random) != _form(random) or position.loss.shape != ():
            raise UnusableCheckpointError("its random state is not one of this release of torch")


def _check_moments(state: TrainingState, parameters: list[Tensor]) -> None:
    """AdamW's tensors, of the parameters that had a gradient so far."""
    for index, values in state.optimizer["state"].items():
        if index >= len(parameters):
            raise UnusableCheckpointError(f"the optimizer's parameter {index} of {len(parameters)}")
        form = _form(parameters[index])
        expected = {"exp_avg": form, "exp_avg_sq": form, "step": ((), torch.float32)}
        _check_tensors(f"optimizer's {index}", _forms(values), expected)


def _check_tensors(what: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UnusableCheckpointError(
                f"{what} tensor {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
            )


def _form(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.dtype


def _forms(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: _form(tensor) for name, tensor in tensors.items()}
