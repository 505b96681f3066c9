"""What is known of a store once its tiles are converted: index, splits, statistics of the training split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryobench.conf.dataset_spec import DatasetSpec, Statistics
from cryobench.conf.digests import file_sha256
from cryobench.conf.errors import CorruptDataError
from cryobench.conf.terms import IGNORE, Split
from cryobench.datasets.raw.reader import RawTile, TileFiles
from cryobench.datasets.store.moments import Moments
from cryobench.datasets.store.percentiles import PERCENTILES, percentiles
from cryobench.datasets.store.store_info import (
    FORMAT,
    INDEX,
    BandStatistics,
    GroupInfo,
    SplitInfo,
    StoreInfo,
    TileRecord,
    description_digest,
    store_digest,
    tile_check,
)

#: A generated raw folder carries this file; its content becomes the store's ``origin``.
ORIGIN_FILE = "ORIGIN.txt"


@dataclass(frozen=True)
class Job:
    """A conversion: of which edition and tiles, from where, to where; ``position`` is a tile's number in its split."""

    spec: DatasetSpec
    edition: str
    tiles: list[TileFiles]
    position: list[int]
    source: Path
    staging: Path
    fingerprint: str


def record_of(job: Job, row: dict[str, Any]) -> TileRecord:
    """The index row of a converted tile."""
    files = job.tiles[row["number"]]
    return TileRecord(
        split=files.split,
        index=job.position[row["number"]],
        image=files.image.relative_to(job.source).as_posix(),
        mask=files.mask.relative_to(job.source).as_posix(),
        image_sha256=row["image_sha256"],
        mask_sha256=row["mask_sha256"],
        crs=row["crs"],
        transform=row["transform"],
        class_pixels=tuple(row["class_pixels"]),
        digests=row["digests"],
        checks=row["checks"],
        window=(window.top, window.left, window.height, window.width) if (window := files.window) else None,
    )


def describe(job: Job, rows: list[dict[str, Any]], first: dict[Split, RawTile]) -> StoreInfo:
    """All that is known of a store from its converted tiles, in order, and from its index, which is there already.

    ``first`` is the first tile of each split.
    """
    spec = job.spec
    groups = {}
    for name, bands in spec.groups.items():
        chosen, published = spec.members(name), spec.published_statistics
        groups[str(name)] = GroupInfo(
            bands=bands,
            dtype=first["train"].groups[name].dtype.str,
            statistics=_statistics(job, str(name), first["train"].groups[name].dtype, rows),
            published=Statistics(
                mean=tuple(published.mean[i] for i in chosen), std=tuple(published.std[i] for i in chosen)
            )
            if published
            else None,
        )
    splits = {}
    for split, tile in first.items():
        mine = [row for row in rows if job.tiles[row["number"]].split == split]
        counts = np.sum([[*row["class_pixels"], row["ignored_pixels"]] for row in mine], axis=0)
        height, width = tile.mask.shape
        splits[split] = SplitInfo(tiles=len(mine), height=height, width=width, class_pixels=tuple(counts.tolist()))
    origin = job.source / ORIGIN_FILE
    info = StoreInfo(
        format=FORMAT,
        dataset=spec,
        origin=origin.read_text().strip() if origin.exists() else "files",
        edition=job.edition,
        classes=spec.classes,
        ignore_index=IGNORE,
        groups=groups,
        splits=splits,
        digest=store_digest(spec.classes, groups, [record_of(job, row) for row in rows]),
        source_fingerprint=job.fingerprint,
        written_by=f"cryobench {version('cryobench')}",
        index_sha256=file_sha256(job.staging / INDEX),
    )
    return info.model_copy(update={"described": description_digest(info.model_dump(mode="json"))})


def _statistics(job: Job, name: str, dtype: np.dtype[Any], rows: list[dict[str, Any]]) -> BandStatistics:
    """Of one group in the training split; percentiles from its chunks, read back and compared once more."""
    train = [row for row in rows if row["moments"]]
    moments = Moments.merged(Moments(**row["moments"][name]) for row in train)
    channels = len(moments.mean)
    missing = np.sum([row["missing"].get(name, [0] * channels) for row in train], axis=0) / moments.count

    def written() -> Iterator[NDArray[Any]]:
        import zarr

        array = zarr.open_array(str(job.staging), path=f"train/{name}", mode="r", zarr_format=3)
        for row in train:
            index = job.position[row["number"]]
            values = np.asarray(array[index])
            if tile_check(values) != row["checks"][name]:
                raise CorruptDataError(
                    f"{job.staging}: tile {index} of train/{name} is not what was written a moment ago. "
                    "Check the disk, remove this folder and run the same command again."
                )
            yield values

    found = percentiles(written, dtype, channels, moments.count, PERCENTILES)
    return BandStatistics(
        mean=tuple(moments.mean),
        std=tuple(moments.std()),
        min=tuple(moments.min),
        max=tuple(moments.max),
        percentiles={q: tuple(row) for q, row in zip(PERCENTILES, found.tolist(), strict=True)},
        missing=tuple(missing.tolist()),
    )


def write_index(path: Path, records: list[TileRecord]) -> None:
    """Write ``index.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("split", pa.string()),
            ("index", pa.int64()),
            ("image", pa.string()),
            ("mask", pa.string()),
            ("image_sha256", pa.string()),
            ("mask_sha256", pa.string()),
            ("crs", pa.string()),
            ("transform", pa.list_(pa.float64())),
            ("class_pixels", pa.list_(pa.int64())),
            ("digests", pa.map_(pa.string(), pa.string())),
            ("checks", pa.map_(pa.string(), pa.int64())),
            ("window", pa.list_(pa.int64())),
        ]
    )
    maps = ("digests", "checks")
    rows = [asdict(record) | {name: list(getattr(record, name).items()) for name in maps} for record in records]
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
