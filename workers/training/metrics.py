"""Metrics from int64 confusion matrices, in percent.

Rows are predictions and columns the truth, as in the reference. Unlike the reference's, the counts are int64 (its
float32 loses ones past 2^24 pixels) and precision and recall are the right way round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryobench.conf.schema import ProtocolSpec
from cryobench.conf.streams import stream
from cryobench.workers.record.result import Metrics

Matrix = NDArray[np.int64]


def confusion(prediction: Tensor, truth: Tensor, classes: int, ignore: int) -> Tensor:
    """Confusion matrix (classes, classes) int64, rows prediction, columns truth, ignored pixels left out."""
    labelled = truth != ignore
    index = prediction[labelled].long() * classes + truth[labelled].long()
    return torch.bincount(index, minlength=classes * classes).view(classes, classes)


def split_metrics(tiles: Matrix, protocol: ProtocolSpec) -> Metrics:
    """Metrics of a split from the matrices (N, classes, classes) of its tiles, with the reference's errors if asked."""
    total = tiles.sum(axis=0)
    if "float32_confusion" in protocol.reference_errors:
        total = np.add.accumulate(tiles.astype(np.float32), axis=0)[-1]  # adds tile by tile, losing ones past 2^24
    found = metrics(total)
    if "swapped_precision_and_recall" in protocol.reference_errors:
        found = found.model_copy(update={"precision": found.recall, "recall": found.precision})
    return found


def metrics(matrix: NDArray[Any]) -> Metrics:
    """Metrics of one confusion matrix."""
    hits = np.diag(matrix).astype(np.float64)
    predicted, true = matrix.sum(axis=1).astype(np.float64), matrix.sum(axis=0).astype(np.float64)
    iou = _share(hits, predicted + true - hits)
    f1 = _share(2 * hits, predicted + true)
    total = float(matrix.sum())
    return Metrics(
        miou=float(iou.mean()),
        mean_f1=float(f1.mean()),
        overall_accuracy=100 * float(hits.sum()) / total if total else 0.0,
        iou=tuple(iou.tolist()),
        f1=tuple(f1.tolist()),
        precision=tuple(_share(hits, predicted).tolist()),
        recall=tuple(_share(hits, true).tolist()),
    )


def bootstrap_miou(tiles: NDArray[np.int64], samples: int, seed: int) -> tuple[float, float]:
    """95 % interval of mIoU over tiles.

    Percentiles of ``samples`` resamples, with replacement, of the matrices (N, classes, classes).
    """
    count, classes, _ = tiles.shape
    weights = stream(seed, "bootstrap").multinomial(count, np.full(count, 1 / count), size=samples)
    matrices = (weights @ tiles.reshape(count, -1)).reshape(samples, classes, classes)
    hits = np.diagonal(matrices, axis1=1, axis2=2).astype(np.float64)
    union = matrices.sum(axis=1) + matrices.sum(axis=2) - hits
    low, high = np.percentile(_share(hits, union).mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return 100 * np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
