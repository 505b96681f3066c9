"""The test of a trial's best weights, with the matrices and pictures that are kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cryobench.workers.model.segmentation import SegmentationModel
from cryobench.workers.record.files import write_whole
from cryobench.workers.record.folder import CONFUSION, CONFUSION_PICTURE, SAMPLES_PICTURE
from cryobench.workers.record.result import TestMetrics
from cryobench.workers.training.attempt_context import AttemptContext
from cryobench.workers.training.evaluation import Evaluation, evaluate
from cryobench.workers.training.metrics import bootstrap_miou, split_metrics
from cryobench.workers.training.pictures import save_confusion, save_samples
from cryobench.workers.training.trial_data import TrialData

_PICTURED = 4


def evaluate_test_split(context: AttemptContext, model: SegmentationModel, data: TrialData) -> Evaluation:
    """Evaluate on the test split, keeping a few tiles to be shown."""
    count = data.info.splits["test"].tiles
    found = evaluate(context, model, data, "test", sorted({i * count // _PICTURED for i in range(_PICTURED)}))
    context.note_memory()
    return found


def measure_test(context: AttemptContext, found: Evaluation) -> TestMetrics:
    """The metrics of a trial's test."""
    protocol = context.spec.protocol
    low, high = bootstrap_miou(found.matrices, protocol.bootstrap_samples, context.spec.seed)
    return TestMetrics(**split_metrics(found.matrices, protocol).model_dump(), miou_low=low, miou_high=high)


def keep_test(context: AttemptContext, found: Evaluation, data: TrialData) -> None:
    """Leave matrices and pictures in the trial's folder."""
    folder, label, classes = context.folder.path, context.spec.label, data.info.classes
    write_whole(folder / CONFUSION, lambda path: _save_array(path, found.matrices))
    save_samples(folder / SAMPLES_PICTURE, found.samples, classes, label)
    save_confusion(folder / CONFUSION_PICTURE, found.matrices.sum(axis=0), classes, label)


def _save_array(path: Path, values: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.save(file, values)
