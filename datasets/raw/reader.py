"""What a reader hands to the converter: where a tile's files are, and the tile read and checked."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.errors import ConfigError, NotBuiltError
from cryobench.conf.terms import Group, Split

#: Entry point group by which other packages add readers; the value is a module that defines `scan` and `read`.
ENTRY_POINTS = "cryobench.readers"

_OWN = {"paired": "cryobench.datasets.raw.paired", "ai4arctic": "cryobench.datasets.raw.ai4arctic"}


@dataclass(frozen=True)
class Window:
    """A tile's place in its scene, in pixels; it may reach beyond the scene's bottom and right.

    Rows before ``fresh_top`` and columns before ``fresh_left`` are labelled in another tile.
    """

    top: int
    left: int
    height: int
    width: int
    fresh_top: int = 0
    fresh_left: int = 0


@dataclass(frozen=True)
class TileFiles:
    """The raw files of one tile, and its place in them if they hold a whole scene."""

    split: Split
    image: Path
    mask: Path
    window: Window | None = None


@dataclass(frozen=True)
class RawTile:
    """One tile in memory.

    ``groups`` holds (C, H, W) arrays in the raw dtype, ``mask`` (H, W) uint8 classes with 255 where there is no
    label, ``transform`` the six affine coefficients from pixel to CRS coordinates. ``missing`` counts, a group and
    channel, the pixels that had no data and were filled.
    """

    groups: dict[Group, NDArray[np.generic]]
    mask: NDArray[np.uint8]
    crs: str | None
    transform: tuple[float, ...] | None
    missing: dict[Group, tuple[int, ...]] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that is stored: the groups and ``mask``."""
        named: dict[str, NDArray[Any]] = {str(group): values for group, values in self.groups.items()}
        return named | {"mask": self.mask}


class Reader(Protocol):
    """The functions of a reader module; ``shape`` (of a scene) is needed for data sets with a ``grid`` alone."""

    scan: Callable[[DatasetSpec, Path], list[TileFiles]]
    read: Callable[[DatasetSpec, TileFiles], RawTile]
    shape: Callable[[TileFiles], tuple[int, int]]


@cache
def readers() -> dict[str, str]:
    """Reader name -> module, those of installed plug-ins too, which may not take the name of one of these."""
    found = dict(_OWN)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in _OWN:
            raise ConfigError(f"A package adds a reader '{point.name}', which is one of cryobench's own; rename it.")
        found[point.name] = point.module
    return found


def is_built(spec: DatasetSpec) -> bool:
    """Whether this release can read the data set's files."""
    return spec.reader in readers()


def require_built(spec: DatasetSpec) -> None:
    """Raise `NotBuiltError` for a data set that is configured, but whose reader is not part of this release."""
    if not is_built(spec):
        raise NotBuiltError(
            f"Data set '{spec.name}' needs the reader '{spec.reader}', which is not part of this release. "
            f"Readers here: {', '.join(sorted(readers()))}. Leave it out of datasets=[...] until then."
        )


def reader_for(spec: DatasetSpec) -> Reader:
    """The reader that ``spec`` names; raises `NotBuiltError` like `require_built`."""
    require_built(spec)
    return cast(Reader, importlib.import_module(readers()[spec.reader]))
