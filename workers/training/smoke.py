"""One training step and one validation tile of a trial, as it would do them: whether it runs here, and in how much
memory. Nothing is kept but the decoded tiles in the node cache, which the trial reads as well.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cryobench.conf.trial import TrialSpec
from cryobench.datasets.batches.tile_source import TileSource
from cryobench.datasets.store.location import below
from cryobench.workers.model.build import build_model
from cryobench.workers.model.numerics import set_numerics
from cryobench.workers.place import Place
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.training.attempt_context import AttemptContext
from cryobench.workers.training.epoch import epoch_start, make_optimizer, train_epoch
from cryobench.workers.training.evaluation import evaluate
from cryobench.workers.training.provenance import device_name
from cryobench.workers.training.trial_data import open_data


@dataclass(frozen=True)
class SmokeResult:
    """What was found: seconds until the data were there, of a step, of the validation tile; the peak of memory.

    ``step_s`` is the second step's where an epoch has two: the first one sets libraries up.
    """

    device: str
    data_s: float
    step_s: float
    validation_s: float
    peak_memory_mb: float
    loss: float

    def plain(self) -> dict[str, Any]:
        """As Ray carries it."""
        return asdict(self)


def smoke_test(spec: TrialSpec, place: Place, scratch: Path) -> SmokeResult:
    """Build the trial's model, train it for a step or two with whole batches, predict one validation tile.

    Args:
        spec: the trial.
        place: where its data and weights are, and what it may use; nothing is written into its storage.
        scratch: a folder that the trial's would be in; nothing is left in it.

    Raises:
        CryobenchError: what the trial itself would fail with, before or in its first step.
        RuntimeError: memory that does not suffice, as torch says it.
    """
    folder = TrialFolder(scratch, spec.trial_id)
    context = AttemptContext(spec, place, folder, lambda event: None, lambda: False)
    torch.set_num_threads(spec.protocol.cpu_threads)
    set_numerics(spec.protocol.precision, spec.protocol.deterministic)
    device = context.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.monotonic()
    store = below(place.data_dir, f"{spec.dataset.name}.zarr")
    data = open_data(spec, store, place.cache_dir, place.resources)
    data.preprocess.to(device)
    data_s = time.monotonic() - began
    model = build_model(spec, len(data.info.classes), place.weights_dir).to(device)
    if spec.protocol.compile:
        model.compile()
    optimizer, position = make_optimizer(model, spec), epoch_start(spec, 1, device)
    steps = min(2, len(data.sampler))
    step_s = 0.0
    with data.loader(place.resources, device) as loader:
        for _ in range(steps):
            began = time.monotonic()
            position = train_epoch(model, optimizer, data, loader, spec, device, position, pause=lambda: True)
            loss = float(position.loss) / position.step  # waits for the device
            step_s = time.monotonic() - began
            context.note_memory()
    one = replace(data, tiles=lambda split: _OneTile(data.tiles(split)))
    began = time.monotonic()
    evaluate(context, model, one, "val")
    context.note_memory()
    return SmokeResult(device_name(device), data_s, step_s, time.monotonic() - began, context.peak_memory_mb, loss)


class _OneTile:
    """The first tile of a split."""

    def __init__(self, source: TileSource) -> None:
        self._source, self.names = source, source.names

    def __len__(self) -> int:
        return min(1, len(self._source))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._source.dtype(name)

    def crop(self, name: str, index: int, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        return self._source.crop(name, index, top, left, height, width)
