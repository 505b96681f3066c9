"""Contact sheets: tiles of a store in false colour, with the outlines of their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cryobench.conf.errors import ConfigError
from cryobench.conf.terms import IGNORE, Split
from cryobench.datasets.store.tile_store import TileStore

#: One colour a class, wherever labels are drawn.
COLOURS = colormaps["tab10"]
_RGB = ("B4", "B3", "B2")
_COLUMNS = 4


@rc_context({"text.parse_math": False})  # names and titles are no formulas
def contact_sheet(store: TileStore, split: Split, count: int, path: Path) -> list[int]:
    """Write a PNG of ``count`` tiles, evenly spread over the split; their numbers.

    Class outlines are coloured as in the legend, hatched is what has no label.
    """
    info = store.info
    total = info.splits[split].tiles
    chosen = sorted({i * total // min(count, total) for i in range(min(count, total))})
    group = next(name for name in ("optical", "sar", "ancillary") if name in info.groups)
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.75 * rows + 0.8), layout="constrained")
    bands = " ".join(shown_bands(info.groups[group].bands))
    figure.suptitle(f"{info.dataset.title}: {split}, {bands}; {info.origin}", fontsize=9)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, index in zip(axes, chosen, strict=False):
        mask = store.tile(split, "mask", index)
        axis.imshow(false_colour(store.tile(split, group, index), info.groups[group].bands), cmap="gray")
        _outline(axis, mask, len(info.classes))
        axis.set_title(f"{index}: {Path(store.records(split)[index].image).name[-34:]}", fontsize=6)
    handles = [Line2D([], [], color=COLOURS(i), label=name) for i, name in enumerate(info.classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path} ({error.strerror}). Give a file in a folder that can be written."
        ) from error
    return chosen


def shown_bands(bands: tuple[str, ...]) -> tuple[str, ...]:
    """The bands that a picture shows as red, green, blue, or the one that it shows in grey."""
    if all(band in bands for band in _RGB):
        return _RGB
    return bands[:3] if len(bands) >= 3 else bands[:1]


def false_colour(image: NDArray[np.generic], bands: tuple[str, ...]) -> NDArray[np.float64]:
    """(C, H, W) raw values to (H, W, 3) or (H, W) in [0, 1], stretched between the 2nd and 98th percentile."""
    values = image[[bands.index(name) for name in shown_bands(bands)]].astype(np.float64)
    low, high = np.percentile(values, [2, 98], axis=(1, 2), keepdims=True)
    stretched = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    view: NDArray[np.float64] = stretched.transpose(1, 2, 0) if len(stretched) == 3 else stretched[0]
    return view


def _outline(axis: object, mask: NDArray[np.uint8], classes: int) -> None:
    for number in range(classes):
        here = mask == number
        if here.any() and not here.all():
            axis.contour(here, [0.5], colors=[COLOURS(number)], linewidths=0.9)  # type: ignore[attr-defined]
    if (mask == IGNORE).any():
        axis.contourf(mask == IGNORE, [0.5, 1.5], colors="none", hatches=["////"])  # type: ignore[attr-defined]
