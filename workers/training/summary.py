"""The result of a finished trial, put together from what was found on the way."""

from __future__ import annotations

import platform
import time

from cryobench.workers.model.segmentation import SegmentationModel
from cryobench.workers.record.checkpoint import Progress
from cryobench.workers.record.result import Cost, Provenance, TestMetrics, TrialResult
from cryobench.workers.training.attempt_context import AttemptContext
from cryobench.workers.training.provenance import code_version, device_name, library_versions
from cryobench.workers.training.trial_data import TrialData


def summary(
    context: AttemptContext,
    data: TrialData,
    model: SegmentationModel,
    progress: Progress,
    *,
    diverged: str | None,
    final_weights: str,
    best_weights: str | None,
    test: TestMetrics | None,
    gmacs: float | None,
) -> TrialResult:
    """``result.json`` of a trial.

    Args:
        context: the attempt.
        data: what it read.
        model: as trained.
        progress: after its last whole epoch.
        diverged: how, if it did.
        final_weights: digest of the weights after the last epoch.
        best_weights: digest of the weights that were tested.
        test: metrics on the test split.
        gmacs: 10^9 multiply-adds for one crop, or None where they could not be counted.
    """
    spec, info, steps = context.spec, data.info, progress.epoch * len(data.sampler)
    training = sum(epoch.seconds for epoch in progress.history)
    return TrialResult(
        trial_id=context.folder.trial_id,
        status="diverged" if diverged else "completed",
        epochs=progress.epoch,
        steps=steps,
        training_tiles=len(data.subset),
        micro_batches=progress.micro_batches,
        best_epoch=progress.best.epoch if progress.best else None,
        best_val_miou=progress.best.val_miou if progress.best else None,
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
            device=device_name(context.device),
        ),
        cost=Cost(
            parameters=sum(p.numel() for p in model.parameters()),
            trained_parameters=sum(p.numel() for p in model.trained_parameters()),
            gmacs=gmacs,
            train_seconds=training,
            total_seconds=time.monotonic() - context.started,
            seconds=dict(context.seconds),
            tiles_per_second=steps * spec.protocol.batch_size / training if training else 0.0,
            peak_memory_mb=context.peak_memory_mb,
        ),
        message=diverged,
    )
