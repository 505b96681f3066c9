"""Raw files -> tile store: streaming, in threads, resumable.

The store grows under ``<name>.zarr.partial`` with a journal of finished tiles and takes its name only when it is
whole (`cryobench.datasets.store.replacement`). An interrupted conversion of the same files continues; of other files
it starts anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.digests import file_sha256
from cryobench.conf.errors import DataError, disk_full
from cryobench.conf.terms import IGNORE, Split
from cryobench.datasets.raw.reader import RawTile, TileFiles, reader_for
from cryobench.datasets.raw.scenes import survey
from cryobench.datasets.store.description import Job, describe, record_of, write_index
from cryobench.datasets.store.moments import Moments
from cryobench.datasets.store.replacement import replace_store, settle
from cryobench.datasets.store.store_info import (
    ATTRIBUTE,
    CONTENT_FORMAT,
    INDEX,
    StoreInfo,
    read_info,
    staging_path,
    tile_check,
    tile_digest,
)

_JOURNAL = "conversion.jsonl"

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
        settle(target)
        if target.exists() and not force:
            info = read_info(target)
            if info.source_fingerprint == fingerprint:
                (target / _JOURNAL).unlink(missing_ok=True)
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
        self.spec, self.tiles, self.target, self.fingerprint = spec, tiles, target, fingerprint
        self.form = spec.edition(edition)
        self.read = reader_for(self.form).read
        self.sha256 = cache(file_sha256)  # the tiles of a scene share its file
        self.staging = staging_path(target)
        self.position: list[int] = []
        seen: dict[Split, int] = {}
        for files in tiles:
            self.position.append(seen.get(files.split, 0))
            seen[files.split] = self.position[-1] + 1
        self.count = seen
        self.job = Job(spec, edition, tiles, self.position, source, self.staging, fingerprint)

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
        write_index(self.staging / INDEX, [record_of(self.job, row) for row in rows])
        info = describe(self.job, rows, first)
        root.attrs[ATTRIBUTE] = info.model_dump(mode="json")
        replace_store(self.staging, self.target)
        # Removed last: a replacement that is interrupted and undone still continues from it.
        (self.target / _JOURNAL).unlink()
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
        path.unlink(missing_ok=True)  # first: a journal must not outlive the tiles that it says are finished
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
            self._check_like(first[files.split], first["train"], tile, files)
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
                        finished, flying = wait(flying, return_when=FIRST_COMPLETED)
                        for future in finished:
                            yield future.result()
                for future in flying:
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _check_like(self, first: RawTile, model: RawTile, tile: RawTile, files: TileFiles) -> None:
        """Compare a tile with the first of its split in size, and with the first of all in what it holds."""
        if tile.mask.shape != first.mask.shape:
            raise DataError(
                f"{files.image}: {tile.mask.shape[1]} x {tile.mask.shape[0]} pixels, the first tile of split "
                f"'{files.split}' has {first.mask.shape[1]} x {first.mask.shape[0]}. "
                "Tiles of a split must have one size; scenes of different sizes are cut into tiles by grid in the "
                "data set's YAML."
            )
        for name, values in tile.groups.items():
            expected = model.groups[name].dtype
            if values.dtype != expected:
                raise DataError(
                    f"{files.image}: dtype {values.dtype}, the first training tile has {expected}. All tiles of a "
                    "data set must have one dtype, in all splits: convert the files that differ, where that loses "
                    "nothing."
                )


def _fingerprint(spec: DatasetSpec, source: Path, tiles: list[TileFiles]) -> str:
    """What identifies a conversion: settings, and path, size and time of every raw file."""
    digest = hashlib.sha256(f"{CONTENT_FORMAT}{spec.model_dump_json()}".encode())
    for files in tiles:
        for path in (files.image, files.mask):
            stat = path.stat()
            relative = path.relative_to(source).as_posix()
            digest.update(f"{files.split}|{relative}|{stat.st_size}|{stat.st_mtime_ns}|{files.window}\n".encode())
    return digest.hexdigest()
