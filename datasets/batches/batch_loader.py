"""Batches of random crops: which ones is decided by named streams, cut ahead by threads, handed out raw."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryobench.conf.errors import ConfigError
from cryobench.conf.streams import stream
from cryobench.datasets.batches.read_ahead import read_ahead
from cryobench.datasets.batches.tile_source import TileSource

#: Bytes worth handing to a thread; of smaller batches several are cut at a time.
_WORTH_A_TASK = 4 << 20


@dataclass(frozen=True)
class Crop:
    """A window of a tile, in pixels."""

    tile: int
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Batch:
    """Raw values as stored: groups (B, C, h, w), mask (B, h, w) uint8 with 255 where there is no label."""

    groups: dict[str, Tensor]
    mask: Tensor


def crop_size(tile: tuple[int, int], wanted: int | str) -> tuple[int, int]:
    """Height and width of a crop: the encoder's input where the tile is as large, else the tile's."""
    if wanted == "tile":
        return tile
    assert isinstance(wanted, int)
    return min(tile[0], wanted), min(tile[1], wanted)


@dataclass(frozen=True)
class EpochSampler:
    """The crops of every epoch, a pure function of seed and epoch number.

    Args:
        tiles: numbers of the tiles to draw from.
        tile_shape: (H, W) of a tile.
        crop: (h, w) of a crop.
        batch_size: crops a batch; an incomplete last batch is dropped.
        crops_per_tile: how often each tile is visited an epoch.
        seed: the trial's seed.
    """

    tiles: NDArray[np.int64]
    tile_shape: tuple[int, int]
    crop: tuple[int, int]
    batch_size: int
    crops_per_tile: int
    seed: int

    def __post_init__(self) -> None:
        if not len(self):
            raise ConfigError(
                f"The training subset has {len(self.tiles)} tiles x {self.crops_per_tile} crops, fewer than one batch "
                f"of {self.batch_size}, and incomplete batches are dropped. Lower protocol.batch_size or raise "
                "protocol.crops_per_tile."
            )

    def __len__(self) -> int:
        return len(self.tiles) * self.crops_per_tile // self.batch_size

    def epoch(self, epoch: int) -> list[list[Crop]]:
        """The batches of one epoch, in order."""
        visits = np.repeat(self.tiles, self.crops_per_tile)
        order = stream(self.seed, "order", epoch).permutation(visits)
        draws = stream(self.seed, "crop", epoch)
        (height, width), (h, w) = self.tile_shape, self.crop
        tops = draws.integers(0, height - h + 1, len(order))
        lefts = draws.integers(0, width - w + 1, len(order))
        crops = [Crop(int(t), int(y), int(x), h, w) for t, y, x in zip(order, tops, lefts, strict=True)]
        size = self.batch_size
        return [crops[i * size : (i + 1) * size] for i in range(len(self))]


class BatchLoader:
    """Cuts batches in threads, ahead of their use; what they hold does not depend on the threads.

    A batch is valid until the next one is asked for: its memory is used again, because filling fresh pages costs as
    much as copying the crops. Page-locked memory is left to torch, which knows when a GPU has fetched it.

    Args:
        source: the tiles.
        groups: input groups to cut besides the masks.
        threads: that cut.
        ahead: batches that are kept ready.
        pin: cut into page-locked memory, from which a GPU fetches without waiting.
        stall_s: how long a batch may take before its read counts as hung.
    """

    def __init__(
        self,
        source: TileSource,
        groups: Sequence[str],
        *,
        threads: int,
        ahead: int,
        pin: bool,
        stall_s: float | None = None,
    ) -> None:
        self._source, self._names, self._ahead, self._pin = source, (*groups, "mask"), ahead, pin
        self._stall = stall_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crops")
        self._used: deque[Batch] = deque()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def load(self, plan: Sequence[Sequence[Crop]]) -> Iterator[Batch]:
        """The batches of ``plan``, in its order, each valid until the next.

        Raises:
            HungReadError: a batch did not come within ``stall_s`` seconds.
        """
        batches_a_task = self._a_task(plan[0]) if plan else 1
        tasks = [plan[i : i + batches_a_task] for i in range(0, len(plan), batches_a_task)]
        for batches in read_ahead(self._pool, self._cut, tasks, -(-self._ahead // batches_a_task), self._stall):
            for batch in batches:
                yield batch
                if not self._pin:
                    self._used.append(batch)

    def _a_task(self, crops: Sequence[Crop]) -> int:
        """Batches that a thread cuts at a time."""
        lead = {name: int(np.prod(self._source.shape(name)[:-2])) for name in self._names}
        pixel = sum(lead[name] * self._source.dtype(name).itemsize for name in self._names)
        size = len(crops) * crops[0].height * crops[0].width * pixel
        return max(1, min(self._ahead, _WORTH_A_TASK // size))

    def _cut(self, plan: Sequence[Sequence[Crop]]) -> list[Batch]:
        return [self._batch(crops) for crops in plan]

    def _batch(self, crops: Sequence[Crop]) -> Batch:
        batch = self._empty(crops)
        for name in self._names:
            out = (batch.mask if name == "mask" else batch.groups[name]).numpy()
            crop = self._source.crop
            for i, c in enumerate(crops):
                out[i] = crop(name, c.tile, c.top, c.left, c.height, c.width)
        return batch

    def _empty(self, crops: Sequence[Crop]) -> Batch:
        """Memory for a batch, used before if there is some of that size."""
        size = (len(crops), crops[0].height, crops[0].width)
        while self._used:
            try:
                batch = self._used.popleft()
            except IndexError:  # another thread was faster
                break
            if tuple(batch.mask.shape) == size:
                return batch
        made = {
            name: _memory((size[0], *self._source.shape(name)[:-2], *size[1:]), self._source.dtype(name), self._pin)
            for name in self._names
        }
        mask = made.pop("mask")
        return Batch(groups=made, mask=mask)


def _memory(shape: tuple[int, ...], dtype: np.dtype[Any], pin: bool) -> Tensor:
    empty = torch.from_numpy(np.empty(0 if pin else shape, dtype))
    return torch.empty(shape, dtype=empty.dtype, pin_memory=True) if pin else empty
