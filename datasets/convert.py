"""Raw files -> tile store: streaming, in threads, resumable.

The store grows under ``<name>.zarr.partial`` with a journal of finished tiles and takes its name only when it is
whole. An interrupted conversion of the same files continues; of other files it starts anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cryobench.conf.data import DatasetSpec, Statistics
from cryobench.conf.digests import file_sha256
from cryobench.conf.errors import CorruptDataError, DataError, disk_full
from cryobench.conf.terms import IGNORE, Split
from cryobench.datasets.moments import Moments
from cryobench.datasets.percentiles import PERCENTILES, percentiles
from cryobench.datasets.scenes import survey
from cryobench.datasets.store import (
    ATTRIBUTE,
    FORMAT,
    INDEX,
    BandStatistics,
    GroupInfo,
    SplitInfo,
    StoreInfo,
    TileRecord,
    read_info,
    staging_path,
    store_digest,
    tile_check,
    tile_digest,
)
from cryobench.datasets.tiles import RawTile, TileFiles, reader_for

_JOURNAL = "conversion.jsonl"
#: A generated raw folder carries this file; its content becomes the store's ``origin``.
ORIGIN_FILE = "ORIGIN.txt"

Progress = Callable[[int, int], None]


def convert(
    spec: DatasetSpec,
    source: Path,
    target: Path,
    *,
    threads: int = 2,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> StoreInfo:
    """Convert the raw files of ``spec`` below ``source`` into the tile store ``target``.

    A store made from the very same files is left as it is. ``progress`` is told tiles done and in total. Memory
    holds a few tiles a thread, however many there are.

    Raises:
        DataError: raw files that are not as the layout promises, or a store of other files and not ``force``.
        DiskFullError: no space left; what was converted is kept and continued from.
    """
    edition, tiles = survey(spec, source)
    fingerprint = _fingerprint(spec, source, tiles)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists() and not force:
            info = read_info(target)
            if info.source_fingerprint == fingerprint:
                progress(len(tiles), len(tiles))
                return info
            raise DataError(
                f"{target} already holds '{info.dataset.name}' from {info.origin} with other files or settings. "
                "Add --force to replace it, or choose another --data-dir."
            )
        try:
            return _Conversion(spec, edition, tiles, source, target, fingerprint).run(threads, progress)
        except OSError as error:
            raise disk_full(error, target) or error from error


class _Conversion:
    def __init__(
        self,
        spec: DatasetSpec,
        edition: str,
        tiles: list[TileFiles],
        source: Path,
        target: Path,
        fingerprint: str,
    ) -> None:
        self.spec, self.edition, self.tiles, self.source, self.target = spec, edition, tiles, source, target
        self.form = spec.edition(edition)
        self.read = reader_for(self.form).read
        self.sha256 = cache(file_sha256)  # the tiles of a scene share its file
        self.fingerprint = fingerprint
        self.staging = staging_path(target)
        self.position: list[int] = []
        seen: dict[Split, int] = {}
        for files in tiles:
            self.position.append(seen.get(files.split, 0))
            seen[files.split] = self.position[-1] + 1
        self.count = seen

    def run(self, threads: int, progress: Progress) -> StoreInfo:
        import zarr

        done = self._journal()
        first = {
            files.split: self.read(self.form, files)
            for files, i in zip(self.tiles, self.position, strict=True)
            if i == 0
        }
        # A tile of zeros is written like any other, so that a chunk that is not there is always a lost one.
        with zarr.config.set({"array.write_empty_chunks": True}):
            root = zarr.open_group(str(self.staging), mode="a", zarr_format=3)
            arrays = self._arrays(root, first)
        with (self.staging / _JOURNAL).open("a") as journal:
            for row in self._converted(arrays, first, set(done), threads):
                done[row["number"]] = row
                journal.write(json.dumps(row) + "\n")
                journal.flush()
                progress(len(done), len(self.tiles))
        rows = [done[number] for number in range(len(self.tiles))]
        info = self._info(rows, first)
        _write_index(self.staging / INDEX, [self._record(row) for row in rows])
        root.attrs[ATTRIBUTE] = info.model_dump(mode="json")
        (self.staging / _JOURNAL).unlink()
        if self.target.exists():
            shutil.rmtree(self.target)
        self.staging.rename(self.target)
        return info

    def _journal(self) -> dict[int, dict[str, Any]]:
        """Finished tiles of an earlier attempt on the same files; anything else there is removed."""
        path = self.staging / _JOURNAL
        if path.exists():
            lines = path.read_text().split("\n")
            if lines[0] == self.fingerprint:
                rows = [json.loads(line) for line in lines[1:-1]]  # a line without its end was never finished
                path.write_text("\n".join([self.fingerprint, *lines[1:-1], ""]))
                return {row["number"]: row for row in rows}
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)
        path.write_text(self.fingerprint + "\n")
        return {}

    def _arrays(self, root: Any, first: dict[Split, RawTile]) -> dict[tuple[Split, str], Any]:
        from zarr.codecs import ZstdCodec

        arrays = {}
        for split, tile in first.items():
            for name, values in tile.arrays().items():
                path = f"{split}/{name}"
                if path not in root:
                    array = root.create_array(
                        path,
                        shape=(self.count[split], *values.shape),
                        chunks=(1, *values.shape),
                        dtype=values.dtype,
                        compressors=ZstdCodec(level=5),
                        fill_value=0,
                    )
                    if name == "mask":
                        array.attrs.update(classes=list(self.spec.classes), ignore_index=IGNORE)
                    else:
                        array.attrs.update(bands=list(self.spec.groups[name]))  # type: ignore[index]
                arrays[split, name] = root[path]
        return arrays

    def _converted(
        self, arrays: dict[tuple[Split, str], Any], first: dict[Split, RawTile], done: set[int], threads: int
    ) -> Iterator[dict[str, Any]]:
        """Convert what is not done, at most two tiles a thread in flight; rows in order of completion."""

        def one(number: int) -> dict[str, Any]:
            files = self.tiles[number]
            tile = self.read(self.form, files)
            self._check_like(first[files.split], tile, files)
            named = tile.arrays()
            for name, values in named.items():
                arrays[files.split, name][self.position[number]] = values
            counts = np.bincount(tile.mask.ravel(), minlength=IGNORE + 1)
            return {
                "number": number,
                "image_sha256": self.sha256(files.image),
                "mask_sha256": self.sha256(files.mask),
                "crs": tile.crs,
                "transform": tile.transform,
                "class_pixels": counts[: len(self.spec.classes)].tolist(),
                "ignored_pixels": int(counts[IGNORE]),
                "digests": {name: tile_digest(values) for name, values in named.items()},
                "checks": {name: tile_check(values) for name, values in named.items()},
                "missing": tile.missing or {},
                "moments": {name: Moments.of(values).plain() for name, values in tile.groups.items()}
                if files.split == "train"
                else None,
            }

        todo = iter([number for number in range(len(self.tiles)) if number not in done])
        with ThreadPoolExecutor(threads) as pool:
            flying: set[Future[dict[str, Any]]] = set()
            try:
                for number in todo:
                    flying.add(pool.submit(one, number))
                    if len(flying) >= 2 * threads:
                        landed, flying = wait(flying, return_when=FIRST_COMPLETED)
                        for future in landed:
                            yield future.result()
                for future in flying:
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _check_like(self, first: RawTile, tile: RawTile, files: TileFiles) -> None:
        if tile.mask.shape != first.mask.shape:
            raise DataError(
                f"{files.image}: {tile.mask.shape[1]} x {tile.mask.shape[0]} pixels, the first tile of split "
                f"'{files.split}' has {first.mask.shape[1]} x {first.mask.shape[0]}. "
                "Tiles of a split must have one size."
            )
        for name, values in tile.groups.items():
            expected = first.groups[name].dtype
            if values.dtype != expected:
                raise DataError(
                    f"{files.image}: dtype {values.dtype}, the first tile of split '{files.split}' has {expected}."
                )

    def _record(self, row: dict[str, Any]) -> TileRecord:
        files = self.tiles[row["number"]]
        return TileRecord(
            split=files.split,
            index=self.position[row["number"]],
            image=files.image.relative_to(self.source).as_posix(),
            mask=files.mask.relative_to(self.source).as_posix(),
            image_sha256=row["image_sha256"],
            mask_sha256=row["mask_sha256"],
            crs=row["crs"],
            transform=row["transform"],
            class_pixels=tuple(row["class_pixels"]),
            digests=row["digests"],
            checks=row["checks"],
            window=(window.top, window.left, window.height, window.width) if (window := files.window) else None,
        )

    def _info(self, rows: list[dict[str, Any]], first: dict[Split, RawTile]) -> StoreInfo:
        spec = self.spec
        groups = {}
        for name, bands in spec.groups.items():
            chosen, published = spec.members(name), spec.published_statistics
            groups[str(name)] = GroupInfo(
                bands=bands,
                dtype=first["train"].groups[name].dtype.str,
                statistics=self._statistics(str(name), first["train"].groups[name].dtype, rows),
                published=Statistics(
                    mean=tuple(published.mean[i] for i in chosen), std=tuple(published.std[i] for i in chosen)
                )
                if published
                else None,
            )
        splits = {}
        for split, tile in first.items():
            mine = [row for row in rows if self.tiles[row["number"]].split == split]
            counts = np.sum([[*row["class_pixels"], row["ignored_pixels"]] for row in mine], axis=0)
            height, width = tile.mask.shape
            splits[split] = SplitInfo(tiles=len(mine), height=height, width=width, class_pixels=tuple(counts.tolist()))
        origin = self.source / ORIGIN_FILE
        return StoreInfo(
            format=FORMAT,
            dataset=spec,
            origin=origin.read_text().strip() if origin.exists() else "files",
            edition=self.edition,
            classes=spec.classes,
            ignore_index=IGNORE,
            groups=groups,
            splits=splits,
            digest=store_digest(spec.classes, groups, [self._record(row) for row in rows]),
            source_fingerprint=self.fingerprint,
            written_by=f"cryobench {version('cryobench')}",
        )

    def _statistics(self, name: str, dtype: np.dtype[Any], rows: list[dict[str, Any]]) -> BandStatistics:
        """Of one group in the training split; percentiles from its chunks, read back and compared once more."""
        train = [row for row in rows if row["moments"]]
        moments = Moments.merged(Moments(**row["moments"][name]) for row in train)
        channels = len(moments.mean)
        missing = np.sum([row["missing"].get(name, [0] * channels) for row in train], axis=0) / moments.count

        def written() -> Iterator[NDArray[Any]]:
            import zarr

            array = zarr.open_array(str(self.staging), path=f"train/{name}", mode="r", zarr_format=3)
            for row in train:
                index = self.position[row["number"]]
                values = np.asarray(array[index])
                if tile_check(values) != row["checks"][name]:
                    raise CorruptDataError(
                        f"{self.staging}: tile {index} of train/{name} is not what was written a moment ago. "
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


def _fingerprint(spec: DatasetSpec, source: Path, tiles: list[TileFiles]) -> str:
    """What identifies a conversion: settings, and path, size and time of every raw file."""
    digest = hashlib.sha256(f"{FORMAT}{spec.model_dump_json()}".encode())
    for files in tiles:
        for path in (files.image, files.mask):
            stat = path.stat()
            relative = path.relative_to(source).as_posix()
            digest.update(f"{files.split}|{relative}|{stat.st_size}|{stat.st_mtime_ns}|{files.window}\n".encode())
    return digest.hexdigest()


def _write_index(path: Path, records: list[TileRecord]) -> None:
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
