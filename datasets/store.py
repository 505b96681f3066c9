"""The tile store: Zarr v3, one array an input group and split, one chunk a tile.

``<name>.zarr/{train,val,test}/{optical,sar,ancillary,mask}`` hold the raw values; `StoreInfo` lies in the root
group's attributes, so that a listing reads one small JSON file; ``index.parquet`` describes every tile. A store
exists under its name only when it is whole: it is written beside it and renamed (`cryobench.datasets.convert`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cryobench.conf.errors import CorruptDataError, MissingDataError
from cryobench.conf.schema import DatasetSpec, Split, Statistics, Strict

FORMAT = 1
INDEX = "index.parquet"
ATTRIBUTE = "cryobench"


class BandStatistics(Strict):
    """Per channel of the training split, in float64 over all its pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]


class SplitInfo(Strict):
    """One split: number of tiles, their size in pixels, and labelled pixels a class (ignored ones last)."""

    tiles: int
    height: int
    width: int
    class_pixels: tuple[int, ...]


class GroupInfo(Strict):
    """One input group: channel names in order, dtype of the arrays, statistics of the training split."""

    bands: tuple[str, ...]
    dtype: str
    statistics: BandStatistics
    published: Statistics | None = None


class StoreInfo(Strict):
    """All that is known of a store without reading a tile."""

    format: int
    dataset: DatasetSpec
    origin: str
    classes: tuple[str, ...]
    ignore_index: int
    groups: dict[str, GroupInfo]
    splits: dict[Split, SplitInfo]
    digest: str
    source_fingerprint: str
    written_by: str


@dataclass(frozen=True)
class TileRecord:
    """One row of the index. ``digests`` holds the SHA-256 of each array's decoded tile."""

    split: Split
    index: int
    image: str
    mask: str
    image_sha256: str
    mask_sha256: str
    crs: str | None
    transform: tuple[float, ...] | None
    class_pixels: tuple[int, ...]
    digests: dict[str, str]


def read_info(path: Path) -> StoreInfo:
    """The description of the store at ``path``, without importing zarr.

    Raises:
        MissingDataError: there is no store, or only an unfinished one.
        CorruptDataError: there is something else under that name, or another format.
    """
    if not path.exists():
        unfinished = staging_path(path).exists()
        what = (
            "only an unfinished conversion of it; run the same command again to continue it"
            if unfinished
            else (f"run: cryobench data prepare {path.stem} --source DIR (or: cryobench data synth {path.stem})")
        )
        raise MissingDataError(f"No tile store {path}: {what}.")
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"][ATTRIBUTE]
        found = attributes.get("format")
        if found != FORMAT:
            raise CorruptDataError(
                f"{path} has store format {found}, this release reads {FORMAT}. Prepare the data set again."
            )
        return StoreInfo.model_validate(attributes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise CorruptDataError(
            f"{path} is not a whole tile store ({type(error).__name__}: {str(error)[:200]}). Expected a folder written "
            f"by cryobench data prepare; remove it and prepare '{path.stem}' again."
        ) from error


def staging_path(path: Path) -> Path:
    """Where a store is written until it is whole."""
    return path.with_name(path.name + ".partial")


def tile_digest(array: NDArray[Any]) -> str:
    """SHA-256 over dtype, shape and values of one tile: independent of compression and chunk layout."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def store_digest(classes: tuple[str, ...], groups: dict[str, GroupInfo], records: list[TileRecord]) -> str:
    """The digest of a whole store: classes, channels, and every tile's content in order. No names of files."""
    digest = hashlib.sha256()
    plain = {name: [list(group.bands), group.dtype] for name, group in groups.items()}
    digest.update(json.dumps([FORMAT, list(classes), plain], sort_keys=True).encode())
    for record in records:
        digest.update(json.dumps([record.split, record.index, sorted(record.digests.items())]).encode())
    return digest.hexdigest()


class TileStore:
    """A whole store, opened for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = read_info(path)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of every split: the input groups, then ``mask``."""
        return (*self.info.groups, "mask")

    @cached_property
    def _root(self) -> Any:
        import zarr

        return zarr.open_group(str(self.path), mode="r", zarr_format=3)

    @cached_property
    def _arrays(self) -> dict[tuple[str, str], Any]:
        return {}

    def array(self, split: Split, name: str) -> Any:
        """The Zarr array of a group (N, C, H, W) or of the masks (N, H, W)."""
        if (split, name) not in self._arrays:
            try:
                self._arrays[split, name] = self._root[f"{split}/{name}"]
            except (KeyError, ValueError) as error:
                raise CorruptDataError(f"{self.path}: array {split}/{name} is missing. Prepare it again.") from error
        return self._arrays[split, name]

    def tile(self, split: Split, name: str, index: int) -> NDArray[Any]:
        """One tile's raw values, as stored and checked against its digest.

        Raises:
            CorruptDataError: the chunk is missing, cannot be decoded, or is not what was written.
        """
        where = f"{self.path}: tile {index} of {split}/{name} ({self.records(split)[index].image})"
        array = self.array(split, name)
        chunk = self.path / split / name / "c" / "/".join(str(i) for i in (index, *[0] * (array.ndim - 1)))
        if not chunk.exists():
            raise CorruptDataError(f"{where} is missing. Prepare the data set again: {_again(self.info)}.")
        try:
            values: NDArray[Any] = np.asarray(array[index])
        except Exception as error:  # the codecs raise whatever they like on damaged bytes
            raise CorruptDataError(
                f"{where} cannot be decoded ({type(error).__name__}: {error}). "
                f"Prepare the data set again: {_again(self.info)}."
            ) from error
        expected = self.records(split)[index].digests[name]
        if tile_digest(values) != expected:
            raise CorruptDataError(
                f"{where} is not what was written: expected digest {expected[:12]}…, found "
                f"{tile_digest(values)[:12]}…. Prepare the data set again: {_again(self.info)}."
            )
        return values

    @cached_property
    def _index(self) -> dict[str, list[TileRecord]]:
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(self.path / INDEX).to_pylist()
        except (OSError, ValueError) as error:
            raise CorruptDataError(f"{self.path / INDEX} cannot be read ({error}). {_again(self.info)}.") from error
        found: dict[str, list[TileRecord]] = {split: [] for split in self.info.splits}
        for row in rows:
            row["digests"] = dict(row["digests"])
            for name in ("transform", "class_pixels"):
                row[name] = tuple(row[name]) if row[name] is not None else None
            found[row["split"]].append(TileRecord(**row))
        for split, info in self.info.splits.items():
            if len(found[split]) != info.tiles:
                raise CorruptDataError(
                    f"{self.path / INDEX} describes {len(found[split])} tiles of {split}, expected {info.tiles}. "
                    f"{_again(self.info)}."
                )
        return found

    def records(self, split: Split) -> list[TileRecord]:
        """The index rows of a split, in tile order."""
        return self._index[split]

    def class_pixels(self, split: Split) -> NDArray[np.int64]:
        """(N, classes) labelled pixels a tile and class, without reading a mask."""
        counts = [record.class_pixels for record in self.records(split)]
        return np.asarray(counts, np.int64).reshape(len(counts), len(self.info.classes))


def _again(info: StoreInfo) -> str:
    return f"cryobench data prepare {info.dataset.name} --source DIR --force"
