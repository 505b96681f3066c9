"""Pictures of a finished trial: sample predictions and the confusion matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cryobench.conf.terms import IGNORE
from cryobench.datasets.show import COLOURS, false_colour
from cryobench.workers.record.files import write_whole
from cryobench.workers.training.evaluation import Sample
from cryobench.workers.training.metrics import Matrix


def save_samples(path: Path, samples: list[Sample], classes: tuple[str, ...], title: str) -> None:
    """One row a sample: image, truth, prediction."""
    figure = Figure(figsize=(7.5, 2.5 * len(samples) + 0.7), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        views = (false_colour(sample.image, sample.bands), _labels(sample.truth), _labels(sample.prediction))
        for axis, view, name in zip(row, views, (f"tile {sample.tile}", "truth", "prediction"), strict=True):
            axis.imshow(view, cmap="gray", interpolation="nearest")
            axis.set_title(name, fontsize=8)
            axis.set_axis_off()
    handles = [Patch(color=COLOURS(i), label=name) for i, name in enumerate(classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(classes)), fontsize=8)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def save_confusion(path: Path, matrix: Matrix, classes: tuple[str, ...], title: str) -> None:
    """The confusion matrix as shares of each true class, with pixel counts."""
    shares = 100 * matrix / np.maximum(matrix.sum(axis=0, keepdims=True), 1)
    side = 2.2 + 0.9 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{share:.1f} %\n{matrix[row, column]:,}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if share > 55 else "black")
    axis.set_xticks(range(len(classes)), classes, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set_xlabel("truth (columns add up to 100 %)", fontsize=8)
    axis.set_ylabel("prediction", fontsize=8)
    axis.set_title(title, fontsize=9)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def _labels(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    coloured: NDArray[np.float64] = COLOURS(mask.astype(int) % COLOURS.N)[..., :3]
    coloured[mask == IGNORE] = 1.0
    return coloured
