"""Mean, spread and range a channel, tile by tile, merged without loss (Chan, Golub and LeVeque 1979)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Per channel: count, mean, sum of squared deviations, smallest and largest value, in float64."""

    count: int
    mean: list[float]
    squares: list[float]
    min: list[float]
    max: list[float]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Moments:
        """The moments of one (C, H, W) tile."""
        flat = values.reshape(values.shape[0], -1).astype(np.float64)
        mean = flat.mean(axis=1)
        squares = np.square(flat - mean[:, None]).sum(axis=1)
        return cls(flat.shape[1], mean.tolist(), squares.tolist(), flat.min(axis=1).tolist(), flat.max(axis=1).tolist())

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """The moments of all parts together; the same parts in the same order give the same bits."""
        count, mean, squares, low, high = 0, np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0)
        for part in parts:
            other = np.asarray(part.mean)
            if not count:
                count, mean, squares = part.count, other, np.asarray(part.squares)
                low, high = np.asarray(part.min), np.asarray(part.max)
                continue
            delta, total = other - mean, count + part.count
            squares = squares + np.asarray(part.squares) + delta**2 * (count * part.count / total)
            mean, count = mean + delta * (part.count / total), total
            low, high = np.minimum(low, part.min), np.maximum(high, part.max)
        return cls(count, mean.tolist(), squares.tolist(), low.tolist(), high.tolist())

    def std(self) -> list[float]:
        """Population standard deviation a channel."""
        return [float(np.sqrt(square / self.count)) for square in self.squares]

    def plain(self) -> dict[str, Any]:
        """Plain JSON data from which ``Moments(**plain)`` is the same again."""
        return asdict(self)
