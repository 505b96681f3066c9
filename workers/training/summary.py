"""The result of a finished trial, put together from what was found on the way."""

from __future__ import annotations

import platform

import torch

from cryobench.conf.trial import TrialSpec
from cryobench.workers.model.cost import multiply_adds
from cryobench.workers.model.segmentation import SegmentationModel
from cryobench.workers.record.checkpoint import TrainingState
from cryobench.workers.record.result import Cost, Provenance, TestMetrics, TrialResult
from cryobench.workers.training.provenance import code_version, device_name, library_versions
from cryobench.workers.training.trial_data import TrialData


def summary(
    spec: TrialSpec,
    data: TrialData,
    model: SegmentationModel,
    state: TrainingState,
    device: torch.device,
    *,
    diverged: str | None,
    final_weights: str,
    best_weights: str | None,
    test: TestMetrics | None,
    seconds: dict[str, float],
    peak_memory_mb: float,
) -> TrialResult:
    """``result.json`` of a trial.

    Args:
        spec: the trial.
        data: what it read.
        model: as trained.
        state: after its last whole epoch.
        device: on which it ran.
        diverged: how, if it did.
        final_weights: digest of the weights after the last epoch.
        best_weights: digest of the weights that were tested.
        test: metrics on the test split.
        seconds: wall time of the last attempt by what it was spent on, and its ``total``.
        peak_memory_mb: the most memory in use.
    """
    info, steps = data.info, state.epoch * len(data.sampler)
    training = sum(epoch.seconds for epoch in state.history)
    return TrialResult(
        trial_id=spec.trial_id,
        status="diverged" if diverged else "completed",
        epochs=state.epoch,
        steps=steps,
        training_tiles=len(data.subset),
        micro_batches=state.micro_batches,
        best_epoch=state.best.epoch if state.best else None,
        best_val_miou=state.best.val_miou if state.best else None,
        test=test,
        classes=info.classes,
        final_weights=final_weights,
        best_weights=best_weights,
        provenance=Provenance(
            weights=spec.encoder.weights.provenance,
            store_digest=info.digest,
            data_origin=info.origin,
            code=code_version(),
            libraries=library_versions(),
            host=platform.node(),
            device=device_name(device),
        ),
        cost=Cost(
            parameters=sum(p.numel() for p in model.parameters()),
            trained_parameters=sum(p.numel() for p in model.trained_parameters()),
            gmacs=multiply_adds(model, spec, data.window("train")),
            train_seconds=training,
            total_seconds=seconds["total"],
            seconds={name: value for name, value in seconds.items() if name != "total"},
            tiles_per_second=steps * spec.protocol.batch_size / training if training else 0.0,
            peak_memory_mb=peak_memory_mb,
        ),
        message=diverged,
    )
