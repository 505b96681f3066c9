"""One epoch of training, without a host synchronisation inside the step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cryobench.conf.schema import ProtocolSpec
from cryobench.conf.streams import stream_seed
from cryobench.conf.terms import IGNORE
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.batches import BatchLoader
from cryobench.workers.data import TrialData
from cryobench.workers.model import SegmentationModel


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
    return torch.optim.AdamW(
        model.trained_parameters(),
        lr=spec.lr,
        betas=protocol.betas,
        weight_decay=protocol.weight_decay,
        fused=True,
    )


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the labelled pixels; zero where a batch has none."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def train_epoch(
    model: SegmentationModel,
    optimizer: torch.optim.Optimizer,
    data: TrialData,
    loader: BatchLoader,
    spec: TrialSpec,
    epoch: int,
    device: torch.device,
) -> float:
    """Train epoch ``epoch`` (1-based) and return its mean loss; not finite if any step's was not.

    All randomness is reseeded from the epoch's own streams, so an epoch depends on the state before it alone.
    """
    torch.manual_seed(stream_seed(spec.seed, "dropout", epoch))
    model.train()
    steps = len(data.sampler)
    total = steps * spec.protocol.epochs
    losses = torch.zeros((), device=device)
    for i, batch in enumerate(loader.load(data.sampler.epoch(epoch))):
        rate = learning_rate(spec.lr, (epoch - 1) * steps + i, total, spec.protocol)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs = data.preprocess({n: t.to(device, non_blocking=True) for n, t in batch.groups.items()})
        labels = data.preprocess.labels(batch.mask.to(device, non_blocking=True))
        loss = segmentation_loss(model(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses += loss.detach()
    return float(losses) / steps
