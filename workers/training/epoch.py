"""One epoch of training, which can pause after any step and go on from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cryobench.conf.schema import ProtocolSpec
from cryobench.conf.streams import stream_seed
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.batches.batch_loader import BatchLoader
from cryobench.workers.model.adapters import parameter_groups
from cryobench.workers.model.segmentation import SegmentationModel, make_adamw, training_step
from cryobench.workers.record.checkpoint import Position
from cryobench.workers.training.trial_data import TrialData


def learning_rate(base: float, step: int, total: int, protocol: ProtocolSpec) -> float:
    """The rate of step ``step`` (0-based) of ``total``: times gamma from each milestone's share of all steps on."""
    rate = base
    for milestone in protocol.lr_milestones:
        if step >= int(milestone * total):
            rate *= protocol.lr_gamma
    return rate


def make_optimizer(model: SegmentationModel, spec: TrialSpec) -> torch.optim.AdamW:
    """AdamW over what trains."""
    protocol = spec.protocol
    groups = parameter_groups(model, spec.lr, spec.regime.layer_decay)
    return make_adamw(groups, spec.lr, protocol.betas, protocol.weight_decay)


def epoch_start(spec: TrialSpec, epoch: int, device: torch.device) -> Position:
    """The position before an epoch's first step. Its randomness is the epoch's own, whatever came before."""
    torch.manual_seed(stream_seed(spec.seed, "dropout", epoch))
    return here(epoch, 0, torch.zeros((), device=device), device)


def here(epoch: int, step: int, loss: Tensor, device: torch.device) -> Position:
    """The position now, with the random states as they are."""
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return Position(epoch, step, loss, torch.get_rng_state(), gpu)


def train_epoch(
    model: SegmentationModel,
    optimizer: torch.optim.Optimizer,
    data: TrialData,
    loader: BatchLoader,
    spec: TrialSpec,
    device: torch.device,
    start: Position,
    *,
    micro_batches: int = 1,
    pause: Callable[[], bool] = lambda: False,
) -> Position:
    """Train from ``start`` to the end of its epoch, or until ``pause`` says so after a step.

    Bit for bit the same in one go or in several. The device is never waited for in between.
    """
    torch.set_rng_state(start.cpu_random)
    if start.gpu_random is not None:
        torch.cuda.set_rng_state(start.gpu_random, device)
    model.train()
    protocol, steps = spec.protocol, len(data.sampler)
    losses, step = start.loss.to(device).clone(), start.step
    for batch in loader.load(data.sampler.epoch(start.epoch)[start.step :]):
        rate = learning_rate(spec.lr, (start.epoch - 1) * steps + step, steps * protocol.epochs, protocol)
        set_rate(optimizer, rate)
        inputs = data.preprocess({n: t.to(device, non_blocking=True) for n, t in batch.groups.items()})
        labels = data.preprocess.labels(batch.mask.to(device, non_blocking=True))
        if protocol.channels_last:
            inputs = {m: values.contiguous(memory_format=torch.channels_last) for m, values in inputs.items()}
        losses += training_step(
            model, optimizer, inputs, labels, precision=protocol.precision, micro_batches=micro_batches
        )
        step += 1
        if step < steps and pause():
            break
    return here(start.epoch, step, losses, device)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of ``rate``."""
    group: dict[str, Any]
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
