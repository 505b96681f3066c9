"""The tile store: Zarr v3, one array an input group and split, one chunk a tile.

``<name>.zarr/{train,val,test}/{optical,sar,ancillary,mask}`` hold the raw values; its description lies in the root
group's attributes (`cryobench.datasets.store.store_info`); ``index.parquet`` describes every tile. A store exists under
its name only when it is whole: it is written beside it and renamed (`cryobench.datasets.store.convert`).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from pydantic import TypeAdapter

from cryobench.conf.errors import CorruptDataError, MissingDataError
from cryobench.conf.terms import Split
from cryobench.datasets.store.location import locate
from cryobench.datasets.store.store_info import INDEX, StoreInfo, TileRecord, read_info, tile_check


class TileStore:
    """A whole store, opened for reading: a local folder, or one at a URL.

    Chunks are read and decoded without the Zarr library, whose cost a chunk is several times that of decompressing it;
    what they are is fixed by the store's format: one chunk a tile, little-endian, Zstandard.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.info = read_info(path)
        self._folder = locate(path)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of every split: the input groups, then ``mask``."""
        return (*self.info.groups, "mask")

    def shape(self, split: Split, name: str) -> tuple[int, ...]:
        """Shape of one tile: (C, H, W) of a group, (H, W) of the masks."""
        info = self.info.splits[split]
        lead = () if name == "mask" else (len(self.info.groups[name].bands),)
        return (*lead, info.height, info.width)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Dtype of a group's tiles or of the masks."""
        return np.dtype(np.uint8) if name == "mask" else np.dtype(self.info.groups[name].dtype)

    def tile(self, split: Split, name: str, index: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """One tile's raw values, as stored and checked against its CRC-32.

        Args:
            split: its split.
            name: an input group or ``mask``.
            index: its number in the split.
            out: a contiguous array to decode into, of the tile's shape and dtype.

        Raises:
            CorruptDataError: the chunk is missing, cannot be decoded, or is not what was written.
        """
        shape, dtype = self.shape(split, name), self.dtype(name)
        key = f"{split}/{name}/c/" + "/".join(str(i) for i in (index, *[0] * len(shape)))
        try:
            packed = self._folder.read(key)
        except FileNotFoundError as error:
            raise self._corrupt(split, name, index, "is missing") from error
        except OSError as error:
            raise MissingDataError(
                f"{self.name_of(split, name, index)} cannot be read ({error.strerror or error}). Check the disk and "
                "who may read the folder, then run the same command again."
            ) from error
        target = np.empty(shape, dtype) if out is None else out
        try:
            Zstd().decode(packed, out=target.reshape(-1).view(np.uint8))
        except (RuntimeError, ValueError) as error:
            raise self._corrupt(split, name, index, f"cannot be decoded ({error})") from error
        expected, found = self.records(split)[index].checks[name], tile_check(target)
        if found != expected:
            raise self._corrupt(
                split, name, index, f"is not what was written: expected CRC-32 {expected:08x}, found {found:08x}"
            )
        return target

    def chunks(self) -> list[tuple[Split, str, int]]:
        """Every tile of every array: split, array, number."""
        return [
            (split, name, i)
            for split, info in self.info.splits.items()
            for name in self.arrays
            for i in range(info.tiles)
        ]

    def name_of(self, split: Split, name: str, index: int) -> str:
        """A tile of an array, in words."""
        return f"{self.path}: tile {index} of {split}/{name} ({self.records(split)[index].image})"

    def _corrupt(self, split: Split, name: str, index: int, what: str) -> CorruptDataError:
        return CorruptDataError(
            f"{self.name_of(split, name, index)} {what}. Prepare the data set again: {_again(self.info)}."
        )

    @cached_property
    def _index(self) -> dict[str, list[TileRecord]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            content = self._folder.read(INDEX)
            if (expected := self.info.index_sha256) and hashlib.sha256(content).hexdigest() != expected:
                raise ValueError("it is not the file that was written")
            file = pq.ParquetFile(io.BytesIO(content))
            rows, tiles = file.metadata.num_rows, sum(info.tiles for info in self.info.splits.values())
            if rows != tiles:
                raise ValueError(f"it describes {rows} tiles, expected {tiles}")
            if unknown := sorted(set(file.schema_arrow.names) - {field.name for field in fields(TileRecord)}):
                raise ValueError(f"it has columns of other names: {', '.join(unknown)}")
            records = _RECORDS.validate_python([_record_of(row) for row in file.read().to_pylist()])
            return self._by_split(records)
        # ValueError includes what pydantic raises; the others come from columns of other types or names.
        except (OSError, ValueError, TypeError, LookupError, AttributeError, pa.ArrowException) as error:
            text = " ".join(str(error).split())[:300]
            raise CorruptDataError(f"{self.path}/{INDEX} cannot be used ({text}). {_again(self.info)}.") from error

    def _by_split(self, records: list[TileRecord]) -> dict[str, list[TileRecord]]:
        found: dict[str, list[TileRecord]] = {split: [] for split in self.info.splits}
        for record in records:
            mine = found[record.split]
            if record.index != len(mine):
                raise ValueError(f"tile {record.index} of {record.split} where {len(mine)} is expected")
            for what in (record.digests, record.checks):
                if set(what) != set(self.arrays):
                    raise ValueError(f"tile {record.index} of {record.split} has digests of {sorted(what)}")
            if len(record.class_pixels) != len(self.info.classes):
                raise ValueError(f"tile {record.index} of {record.split}: {len(record.class_pixels)} classes")
            mine.append(record)
        for split, info in self.info.splits.items():
            if len(found[split]) != info.tiles:
                raise ValueError(f"it describes {len(found[split])} tiles of {split}, expected {info.tiles}")
        return found

    def records(self, split: Split) -> list[TileRecord]:
        """The index rows of a split, in tile order."""
        return self._index[split]

    def class_pixels(self, split: Split) -> NDArray[np.int64]:
        """(N, classes) labelled pixels a tile and class, without reading a mask."""
        counts = [record.class_pixels for record in self.records(split)]
        return np.asarray(counts, np.int64).reshape(len(counts), len(self.info.classes))


_RECORDS = TypeAdapter(list[TileRecord])


def _record_of(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "digests": dict(row["digests"]), "checks": dict(row["checks"])}


def _again(info: StoreInfo) -> str:
    return f"cryobench data prepare {info.dataset.name} --source DIR --force"
