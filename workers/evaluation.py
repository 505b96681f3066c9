"""Evaluation of a whole split by sliding window: one confusion matrix a tile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryobench.conf.terms import Split
from cryobench.conf.trial import TrialSpec
from cryobench.workers.data import TrialData
from cryobench.workers.metrics import Matrix, confusion
from cryobench.workers.model import SegmentationModel
from cryobench.workers.windows import sliding_logits, window_offsets


@dataclass(frozen=True)
class Sample:
    """A tile with its prediction, for a picture: raw image (C, H, W) of ``bands``, truth and prediction (H, W)."""

    tile: int
    image: NDArray[np.generic]
    bands: tuple[str, ...]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@torch.no_grad()
def evaluate(
    model: SegmentationModel,
    data: TrialData,
    split: Split,
    spec: TrialSpec,
    device: torch.device,
    keep: Iterable[int] = (),
) -> tuple[Matrix, list[Sample]]:
    """Confusion matrices (N, classes, classes) int64, rows prediction, and the tiles in ``keep`` as samples."""
    model.eval()
    source = data.tiles(split)
    info, classes = data.info.splits[split], len(data.info.classes)
    window, batch = data.window(split), spec.protocol.eval_batch_size
    a_tile = len(window_offsets(info.height, window[0])) * len(window_offsets(info.width, window[1]))
    at_once = max(1, batch // a_tile)
    wanted, samples, matrices = set(keep), [], []

    def predict(groups: dict[str, Tensor]) -> Tensor:
        logits: Tensor = model(data.preprocess(groups))
        return logits

    for start in range(0, len(source), at_once):
        some = range(start, min(start + at_once, len(source)))
        whole = {
            name: np.stack([source.crop(name, i, 0, 0, info.height, info.width) for i in some])
            for name in (*data.preprocess.groups, "mask")
        }
        groups: dict[str, Tensor] = {name: torch.from_numpy(whole[name]).to(device) for name in data.preprocess.groups}
        predicted = sliding_logits(predict, groups, window, batch).argmax(dim=1)
        truth = torch.from_numpy(whole["mask"]).to(device)
        matrices += [confusion(p, t, classes, data.info.ignore_index) for p, t in zip(predicted, truth, strict=True)]
        for place, tile in enumerate(some):
            if tile in wanted:
                shown = "optical" if "optical" in whole else data.preprocess.groups[-1]
                found = predicted[place].to(torch.uint8).cpu().numpy()
                bands = data.info.groups[shown].bands
                samples.append(Sample(tile, whole[shown][place], bands, whole["mask"][place], found))
    return torch.stack(matrices).cpu().numpy(), samples
