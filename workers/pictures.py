"""Pictures of a finished trial: sample predictions and the confusion matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cryobench.conf.schema import IGNORE
from cryobench.workers.evaluation import Sample
from cryobench.workers.files import write_whole
from cryobench.workers.metrics import Matrix

_COLOURS = colormaps["tab10"]


def save_samples(path: Path, samples: list[Sample], classes: tuple[str, ...], title: str) -> None:
    """One row a sample: image, truth, prediction."""
    figure = Figure(figsize=(7.5, 2.5 * len(samples) + 0.7), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        views = (false_colour(sample.image), _labels(sample.truth), _labels(sample.prediction))
        for axis, view, name in zip(row, views, (f"tile {sample.tile}", "truth", "prediction"), strict=True):
            axis.imshow(view, cmap="gray", interpolation="nearest")
            axis.set_title(name, fontsize=8)
            axis.set_axis_off()
    handles = [Patch(color=_COLOURS(i), label=name) for i, name in enumerate(classes)]
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


def false_colour(image: NDArray[np.generic]) -> NDArray[np.float64]:
    """(C, H, W) raw values to (H, W, 3) or (H, W) in [0, 1], stretched between the 2nd and 98th percentile."""
    # Files name blue first (B2 B3 B4 …) or are RGB with three channels; either way three bands make a picture.
    chosen = image[:3] if len(image) == 3 else image[2::-1] if len(image) > 3 else image[:1]
    values = chosen.astype(np.float64)
    low, high = np.percentile(values, [2, 98], axis=(1, 2), keepdims=True)
    stretched = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    view: NDArray[np.float64] = stretched.transpose(1, 2, 0) if len(stretched) == 3 else stretched[0]
    return view


def _labels(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    coloured: NDArray[np.float64] = _COLOURS(mask.astype(int) % _COLOURS.N)[..., :3]
    coloured[mask == IGNORE] = 1.0
    return coloured
