"""Random access to tiles, and the quickest form of it: memory-mapped arrays. Needs numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cryobench.conf.terms import Split


class TileSource(Protocol):
    """Random access to the raw tiles of one split."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of tiles."""

    def shape(self, name: str) -> tuple[int, ...]:
        """(C, H, W) of a group's tiles, (H, W) of the masks."""

    def dtype(self, name: str) -> np.dtype[Any]:
        """Dtype of a group's tiles."""

    def crop(self, name: str, index: int, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """A window of one tile: (C, height, width) or (height, width)."""


class CachedTiles:
    """One split from memory-mapped arrays; resident memory does not grow with the data set."""

    def __init__(self, folder: Path, split: Split, names: tuple[str, ...]) -> None:
        self.names = names
        self._arrays = {name: np.asarray(np.load(folder / f"{split}-{name}.npy", mmap_mode="r")) for name in names}

    def __len__(self) -> int:
        return len(self._arrays["mask"])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tile."""
        return tuple(self._arrays[name].shape[1:])

    def dtype(self, name: str) -> np.dtype[Any]:
        """Dtype of the tiles."""
        found: np.dtype[Any] = self._arrays[name].dtype
        return found

    def crop(self, name: str, index: int, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """A view of the window; reading it touches only its pages."""
        window: NDArray[Any] = self._arrays[name][index, ..., top : top + height, left : left + width]
        return window
