"""Exact percentiles of more values than memory holds: the wanted order statistics, found digit by digit.

Values are mapped to unsigned integers of the same order. Each pass counts, for every prefix that still holds a wanted
rank, the next 16 bits; 8- and 16-bit data take one pass, 32-bit data two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Percentiles that every store records.
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_DIGIT = 16


def percentiles(
    parts: Callable[[], Iterable[NDArray[Any]]],
    dtype: np.dtype[Any],
    channels: int,
    count: int,
    wanted: tuple[int, ...],
) -> NDArray[np.float64]:
    """Percentiles (len(wanted), channels) of the (C, H, W) ``parts`` together, as NumPy's linear method gives them.

    Args:
        parts: gives all parts anew, one after the other, at every call.
        dtype: of the parts; integer or float.
        channels: C.
        count: values a channel in all parts.
        wanted: in percent.
    """
    bits = dtype.itemsize * 8
    step = min(_DIGIT, bits)
    places = (count - 1) * np.asarray(wanted) / 100
    lower, upper = np.floor(places).astype(int), np.ceil(places).astype(int)
    every = sorted({*lower.tolist(), *upper.tolist()})
    # A channel: rank -> its digits so far, and its rank among the values that begin with them.
    ranks: list[dict[int, tuple[int, int]]] = [{rank: (0, rank) for rank in every} for _ in range(channels)]
    for shift in range(bits - step, -1, -step):
        counts = _counted(parts(), dtype, ranks, shift, step)
        for mine, counted in zip(ranks, counts, strict=True):
            for rank, (prefix, within) in mine.items():
                ends = np.cumsum(counted[prefix])
                digit = int(np.searchsorted(ends, within, side="right"))
                mine[rank] = ((prefix << step) | digit, within - (int(ends[digit - 1]) if digit else 0))
    result = np.empty((len(wanted), channels))
    for channel, mine in enumerate(ranks):
        value = {rank: _value(key, dtype) for rank, (key, _) in mine.items()}
        for row, (low, high) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
            result[row, channel] = value[low] + (value[high] - value[low]) * (places[row] - low)
    return result


def _counted(
    parts: Iterable[NDArray[Any]], dtype: np.dtype[Any], ranks: list[dict[int, tuple[int, int]]], shift: int, step: int
) -> list[dict[int, NDArray[np.int64]]]:
    """For every channel and every prefix in use, how often each next digit follows it."""
    prefixes = [sorted({prefix for prefix, _ in mine.values()}) for mine in ranks]
    counts = [{prefix: np.zeros(1 << step, np.int64) for prefix in mine} for mine in prefixes]
    for part in parts:
        for channel, mine in enumerate(prefixes):
            keys = _ordered(part[channel].ravel(), dtype).astype(np.uint64)
            digits = ((keys >> np.uint64(shift)) & np.uint64((1 << step) - 1)).astype(np.int64)
            high = keys >> np.uint64(shift + step) if shift + step < 64 else np.zeros_like(keys)
            known = np.asarray(mine, np.uint64)
            place = np.searchsorted(known, high).clip(max=len(known) - 1)
            hit = known[place] == high
            digits, place = digits[hit], place[hit]
            for index, prefix in enumerate(mine):
                counts[channel][prefix] += np.bincount(digits[place == index], minlength=1 << step)
    return counts


def _ordered(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Unsigned integers in the order of ``values``."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    raw = np.ascontiguousarray(values).view(unsigned)
    top = unsigned.type(1 << (unsigned.itemsize * 8 - 1))
    if dtype.kind == "f":
        return np.where(raw & top, ~raw, raw | top)
    return raw ^ top if dtype.kind == "i" else raw


def _value(key: int, dtype: np.dtype[Any]) -> float:
    """The inverse of `_ordered` for one value."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    top = 1 << (unsigned.itemsize * 8 - 1)
    if dtype.kind == "f":
        key = key ^ top if key & top else ~key & (2 * top - 1)
    elif dtype.kind == "i":
        key ^= top
    return float(np.asarray([key], unsigned).view(dtype)[0])
