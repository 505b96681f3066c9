"""What is known of a tile store without reading a tile: its description, and the digests that hold it together.

`StoreInfo` lies in the root group's attributes, so that a listing reads one small JSON file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from cryobench.conf.dataset_spec import DatasetSpec, Statistics
from cryobench.conf.errors import CorruptDataError, MissingDataError
from cryobench.conf.strict import Strict
from cryobench.conf.terms import IGNORE, SPLITS, Group, Split
from cryobench.datasets.raw.rasters import DTYPES
from cryobench.datasets.raw.source_files import MAX_TILE_PIXELS
from cryobench.datasets.store.location import Location, locate

#: 3 has digests of the description and of the index in it; what 2 and 3 hold is the same else.
FORMAT = 3
_READ = (2, 3)
#: Enters the digest of the content, by which trials are named: formats that hold the same tiles keep it.
CONTENT_FORMAT = 2
INDEX = "index.parquet"
ATTRIBUTE = "cryobench"
#: Names of the dtypes that arrays may have, as NumPy spells them: little-endian.
_STORED = tuple(np.dtype(name).newbyteorder("<").str for name in DTYPES)
#: Bytes that a tile of one array may take, and tiles of a split.
_MOST_BYTES, _MOST_TILES = 2**34, 10**8
_SHOWN_PERCENTILES = {1, 50, 99}


class BandStatistics(Strict):
    """Per channel of the training split, in float64 over all its pixels as stored, that is with no-data filled.

    ``missing`` is the share of pixels that had no data.
    """

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(ge=0)], ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    percentiles: dict[Annotated[int, Field(ge=0, le=100)], tuple[float, ...]]
    missing: tuple[Annotated[float, Field(ge=0, le=1)], ...]


class SplitInfo(Strict):
    """One split: number of tiles, their size in pixels, and labelled pixels a class (ignored ones last)."""

    tiles: Annotated[int, Field(ge=1, le=_MOST_TILES)]
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    class_pixels: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _bearable(self) -> SplitInfo:
        if self.height * self.width > MAX_TILE_PIXELS:
            raise ValueError(f"{self.width} x {self.height} pixels a tile, expected at most {MAX_TILE_PIXELS}")
        return self


class GroupInfo(Strict):
    """One input group: channel names in order, dtype of the arrays, statistics of the training split."""

    bands: Annotated[tuple[str, ...], Field(min_length=1)]
    dtype: str
    statistics: BandStatistics
    published: Statistics | None = None

    @model_validator(mode="after")
    def _consistent(self) -> GroupInfo:
        if self.dtype not in _STORED:
            raise ValueError(f"dtype {self.dtype[:40]!r}, expected one of {', '.join(_STORED)}")
        said = self.statistics
        if missing := _SHOWN_PERCENTILES - set(said.percentiles):
            raise ValueError(f"statistics lack the percentiles {sorted(missing)}")
        values = [said.mean, said.std, said.min, said.max, said.missing, *said.percentiles.values()]
        published = [self.published.mean, self.published.std] if self.published else []
        if wrong := {len(found) for found in (*values, *published)} - {len(self.bands)}:
            raise ValueError(f"statistics of {sorted(wrong)} bands, expected {len(self.bands)}")
        return self


class StoreInfo(Strict):
    """All that is known of a store without reading a tile.

    ``digest`` is of the tiles, and names the store in its trials; ``index_sha256`` of the index file; ``described`` of
    all other fields here, `description_digest`.
    """

    format: int
    dataset: DatasetSpec
    origin: str
    edition: str
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=IGNORE)]
    ignore_index: Literal[255]
    groups: Annotated[dict[str, GroupInfo], Field(min_length=1)]
    splits: dict[Split, SplitInfo]
    digest: str
    source_fingerprint: str
    written_by: str
    index_sha256: str = ""
    described: str = ""

    @model_validator(mode="after")
    def _whole(self) -> StoreInfo:
        if missing := [split for split in SPLITS if split not in self.splits]:
            raise ValueError(f"no split {' and '.join(missing)}, expected {', '.join(SPLITS)}")
        if unknown := set(self.groups) - set(get_args(Group)):
            raise ValueError(f"groups {sorted(unknown)}, expected some of {', '.join(get_args(Group))}")
        for split, info in self.splits.items():
            if len(info.class_pixels) != len(self.classes) + 1:
                raise ValueError(
                    f"{split}: pixels of {len(info.class_pixels)} classes, expected {len(self.classes) + 1}"
                )
            for name, group in self.groups.items():
                size = len(group.bands) * info.height * info.width * np.dtype(group.dtype).itemsize
                if size > _MOST_BYTES:
                    raise ValueError(f"{split}/{name}: {size:,} bytes a tile, expected at most {_MOST_BYTES:,}")
        return self


@dataclass(frozen=True)
class TileRecord:
    """One row of the index.

    ``digests`` holds the SHA-256 of each array's decoded tile, ``checks`` its CRC-32, which is what every read is
    compared with. ``window`` is the tile's top, left, height and width in its scene.
    """

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
    checks: dict[str, int]
    window: tuple[int, ...] | None = None


def read_info(path: Path | str) -> StoreInfo:
    """The description of the store at ``path`` or URL, without importing zarr.

    Raises:
        MissingDataError: there is no store, or only an unfinished one.
        CorruptDataError: there is something else under that name, or another format.
    """
    folder = locate(path)
    name = folder.name.removesuffix(".zarr")
    try:
        attributes = json.loads(folder.read("zarr.json"))["attributes"][ATTRIBUTE]
        found = attributes.get("format")
        if found not in _READ:
            raise CorruptDataError(
                f"{path} has store format {found}, this release reads {' and '.join(map(str, _READ))}. Prepare the "
                "data set again."
            )
        if found >= 3 and attributes.get("described") != description_digest(attributes):
            raise CorruptDataError(
                f"{folder}/zarr.json is not what was written: statistics, classes or bands in it were changed, and do "
                f"not fit its digest any more. Bring it back from a copy, or prepare '{name}' again."
            )
        return StoreInfo.model_validate(attributes)
    except FileNotFoundError as error:
        if isinstance(path, Path) and path.exists():
            raise _not_whole(folder, name, error) from error
        unfinished = isinstance(path, Path) and staging_path(path).exists()
        what = (
            "only an unfinished conversion of it; run the same command again to continue it"
            if unfinished
            else f"run: cryobench data prepare {name} --source DIR (or: cryobench data synth {name})"
        )
        raise MissingDataError(f"No tile store {folder}: {what}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_whole(folder, name, error) from error


def description_digest(attributes: Mapping[str, Any]) -> str:
    """SHA-256 over a store's description as plain JSON data, without the field that holds this digest."""
    plain = {name: value for name, value in attributes.items() if name != "described"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def staging_path(path: Path) -> Path:
    """Where a store is written until it is whole."""
    return path.with_name(path.name + ".partial")


def tile_digest(array: NDArray[Any]) -> str:
    """SHA-256 over dtype, shape and values of one tile: independent of compression and chunk layout."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def tile_check(array: NDArray[Any]) -> int:
    """CRC-32 over the values of one tile, many times faster than `tile_digest`."""
    return int(crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data))


def store_digest(classes: tuple[str, ...], groups: Mapping[str, GroupInfo], records: list[TileRecord]) -> str:
    """The digest of a whole store: classes, channels, and every tile's content in order. No names of files."""
    digest = hashlib.sha256()
    plain = {name: [list(group.bands), group.dtype] for name, group in groups.items()}
    digest.update(json.dumps([CONTENT_FORMAT, list(classes), plain], sort_keys=True).encode())
    for record in records:
        digest.update(json.dumps([record.split, record.index, sorted(record.digests.items())]).encode())
    return digest.hexdigest()


def _not_whole(folder: Location, name: str, error: Exception) -> CorruptDataError:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        text = f"{'.'.join(str(part) for part in problem['loc']) or 'description'}: {problem['msg']}"
    else:
        text = f"{type(error).__name__}: {error}"
    return CorruptDataError(
        f"{folder} is not a whole tile store ({' '.join(text.split())[:300]}). Expected a folder written "
        f"by cryobench data prepare; remove it and prepare '{name}' again."
    )
