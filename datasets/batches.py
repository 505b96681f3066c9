"""Batches of random crops: which ones is decided by named streams, cut ahead by threads, handed out raw."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryobench.conf.errors import ConfigError
from cryobench.conf.streams import stream
from cryobench.datasets.cache import TileSource


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
    """Cuts batches in threads, a few ahead of their use; what they hold does not depend on the threads."""

    def __init__(self, source: TileSource, groups: Sequence[str], *, threads: int, ahead: int, pin: bool) -> None:
        self._source, self._groups, self._ahead, self._pin = source, tuple(groups), ahead, pin
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crops")

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def load(self, plan: Sequence[Sequence[Crop]]) -> Iterator[Batch]:
        """The batches of ``plan``, in its order."""
        flying: deque[Future[Batch]] = deque()
        waiting = iter(plan)
        for crops in waiting:
            flying.append(self._pool.submit(self._cut, crops))
            if len(flying) > self._ahead:
                break
        while flying:
            batch = flying.popleft().result()
            following = next(waiting, None)
            if following is not None:
                flying.append(self._pool.submit(self._cut, following))
            yield batch

    def _cut(self, crops: Sequence[Crop]) -> Batch:
        cut = {name: self._stack(name, crops) for name in (*self._groups, "mask")}
        mask = cut.pop("mask")
        return Batch(groups=cut, mask=mask)

    def _stack(self, name: str, crops: Sequence[Crop]) -> Tensor:
        lead = self._source.shape(name)[:-2]
        out = np.empty((len(crops), *lead, crops[0].height, crops[0].width), self._source.dtype(name))
        for i, c in enumerate(crops):
            out[i] = self._source.crop(name, c.tile, c.top, c.left, c.height, c.width)
        tensor = torch.from_numpy(out)
        return tensor.pin_memory() if self._pin else tensor
