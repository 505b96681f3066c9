"""Evaluation of a whole split by sliding window: one confusion matrix a tile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryobench.conf.terms import Split
from cryobench.datasets.batches.read_ahead import read_ahead
from cryobench.workers.model.numerics import autocast
from cryobench.workers.model.segmentation import SegmentationModel
from cryobench.workers.training.attempt_context import AttemptContext
from cryobench.workers.training.memory import is_out_of_memory
from cryobench.workers.training.metrics import confusion
from cryobench.workers.training.trial_data import TrialData
from cryobench.workers.training.windows import sliding_logits, window_offsets


@dataclass(frozen=True)
class Sample:
    """A tile with its prediction, for a picture: raw image (C, H, W) of ``bands``, truth and prediction (H, W)."""

    tile: int
    image: NDArray[np.generic]
    bands: tuple[str, ...]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """What evaluating a split found.

    ``matrices``: confusion (N, classes, classes) int64, rows prediction. ``finite``: whether all of the model's outputs
    were numbers; where they were not, matrices mean nothing.
    """

    matrices: NDArray[np.int64]
    samples: list[Sample]
    finite: bool


@torch.no_grad()
def evaluate(
    context: AttemptContext, model: SegmentationModel, data: TrialData, split: Split, keep: Iterable[int] = ()
) -> Evaluation:
    """Evaluate ``model`` on a split, with the tiles in ``keep`` as samples.

    Tiles are read ahead. A batch of windows that does not fit into memory is tried again in halves.

    Raises:
        InterruptedTrialError: the attempt was asked to stop; asked before every batch of tiles.
    """
    with context.timed("evaluation"):
        return _evaluate(context, model, data, split, set(keep))


def _evaluate(
    context: AttemptContext, model: SegmentationModel, data: TrialData, split: Split, wanted: set[int]
) -> Evaluation:
    model.eval()
    device, protocol = context.device, context.spec.protocol
    source, stall_s = data.tiles(split), context.place.resources.stall_timeout_s
    info, classes = data.info.splits[split], len(data.info.classes)
    window, batch = data.window(split), protocol.eval_batch_size
    a_tile = len(window_offsets(info.height, window[0])) * len(window_offsets(info.width, window[1]))
    at_once = max(1, batch // a_tile)
    samples: list[Sample] = []
    matrices: list[Tensor] = []
    finite = torch.ones((), dtype=torch.bool, device=device)

    def read(tiles: range) -> dict[str, NDArray[Any]]:
        return {
            name: np.stack([source.crop(name, i, 0, 0, info.height, info.width) for i in tiles])
            for name in (*data.preprocess.groups, "mask")
        }

    def predict(groups: dict[str, Tensor]) -> Tensor:
        inputs = data.preprocess(groups)
        if protocol.channels_last:
            inputs = {m: values.contiguous(memory_format=torch.channels_last) for m, values in inputs.items()}
        with autocast(protocol.precision, device):
            logits: Tensor = model(inputs)
        return logits.float()

    parts = [range(start, min(start + at_once, len(source))) for start in range(0, len(source), at_once)]
    pool = ThreadPoolExecutor(1, thread_name_prefix="tiles")
    try:
        for tiles, whole in zip(parts, read_ahead(pool, read, parts, 1, stall_s), strict=True):
            context.leave_if_asked(f"evaluating on {split}")
            groups: dict[str, Tensor] = {
                str(name): torch.from_numpy(whole[name]).to(device) for name in data.preprocess.groups
            }
            logits, batch = _merged(predict, groups, window, batch)
            finite &= logits.isfinite().all()
            predicted = logits.argmax(dim=1)
            truth = torch.from_numpy(whole["mask"]).to(device)
            matrices += [
                confusion(p, t, classes, data.info.ignore_index) for p, t in zip(predicted, truth, strict=True)
            ]
            for place, tile in enumerate(tiles):
                if tile in wanted:
                    shown = "optical" if "optical" in whole else data.preprocess.groups[-1]
                    found = predicted[place].to(torch.uint8).cpu().numpy()
                    bands = data.info.groups[shown].bands
                    samples.append(Sample(tile, whole[shown][place], bands, whole["mask"][place], found))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return Evaluation(torch.stack(matrices).cpu().numpy(), samples, bool(finite))


def _merged(
    predict: Callable[[dict[str, Tensor]], Tensor], groups: dict[str, Tensor], window: tuple[int, int], batch: int
) -> tuple[Tensor, int]:
    """Merged logits, by as many windows at once as memory holds; how many that was."""
    while True:
        try:
            return sliding_logits(predict, groups, window, batch), batch
        except Exception as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
        batch //= 2
