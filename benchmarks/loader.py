"""Training crops a second, side by side in one run on the same tiles: the reference's way, Zarr directly, ours.

The reference reads a whole GeoTIFF or PNG through rasterio for every sample, makes it float32, crops and normalises it,
in a PyTorch DataLoader with two processes. Zarr directly: the tile's chunk is decoded for every sample. Ours: crops cut
by threads from the node cache, raw integers, as they are handed to the device; and the same with the normalisation that
follows on the device done here, on the CPU. The bare copy moves the bytes of the same batches in memory, from batches
that were cut before. Warm: the files are in the page cache; cold: they were just dropped from it, one epoch each.

First use: decoding the store into the node cache, against decompressing its chunks in as many threads and no more.
Opening: every process compares the node cache's tiles with the store's CRC-32 once, in GB a second, and as a share of
what cutting the crops of 80 epochs takes.

Usage: python benchmarks/loader.py [--tiles 48] [--seconds 4] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numcodecs.zstd import Zstd
from rasterio.errors import NotGeoreferencedWarning
from torch.utils.data import DataLoader, Dataset

from cryobench.conf.compose import load_dataset
from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.trial import Feed, Source
from cryobench.datasets.batches.batch_loader import BatchLoader, EpochSampler
from cryobench.datasets.batches.cache_check import arrays_of, damaged_tile
from cryobench.datasets.batches.node_cache import StoredTiles, decoded_bytes, open_tiles
from cryobench.datasets.batches.preprocess import Preprocess
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.tile_store import TileStore

CROP, BATCH, SIDE = 224, 8, 512
KINDS = {"gsdd": (".tif", "float32"), "glid": (".tif", "uint8"), "caffe": (".png", "uint8")}


class ReferenceDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One sample as the reference makes it."""

    def __init__(self, files: list[tuple[Path, Path]], mean: torch.Tensor, std: torch.Tensor) -> None:
        self.files, self.mean, self.std = files, mean, std

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A normalised random crop and its mask."""
        image, mask = self.files[index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(image) as raster:
                values = torch.from_numpy(raster.read().astype(np.float32))
            with rasterio.open(mask) as raster:
                labels = torch.from_numpy(raster.read(1).astype(np.int64))
        top, left = (int(torch.randint(0, SIDE - CROP + 1, ())) for _ in range(2))
        values = values[:, top : top + CROP, left : left + CROP]
        return (values - self.mean) / self.std, labels[top : top + CROP, left : left + CROP]


def write_tiles(spec: DatasetSpec, folder: Path, count: int) -> None:
    """Noise smooth enough to compress like imagery, in the data set's layout and dtype."""
    suffix, dtype = KINDS[spec.name]
    rng = np.random.default_rng(0)
    images, masks = ("images/{}", "labels/{}") if spec.name == "caffe" else ("{}/images", "{}/masks")
    for split, number in (("train", count), ("val", 1), ("test", 1)):
        for i in range(number):
            coarse = rng.random((len(spec.channels), SIDE // 8, SIDE // 8))
            values = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2) + rng.normal(0, 0.02, (1, SIDE, SIDE))
            image = values.astype(np.float32) if dtype == "float32" else (values.clip(0, 1) * 255).astype(np.uint8)
            mask = (values[:1] > 0.5).astype(np.uint8)
            for where, array in ((images, image), (masks, mask)):
                path = folder / where.format(split) / f"{i:04d}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                profile = {"count": len(array), "height": SIDE, "width": SIDE, "dtype": array.dtype}
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", NotGeoreferencedWarning)
                    with rasterio.open(path, "w", driver="PNG" if suffix == ".png" else "GTiff", **profile) as raster:
                        raster.write(array)


def crops_a_second(batches: Callable[[], Iterable[int]], seconds: float) -> float:
    """Crops that ``batches`` (a whole epoch, yielding batch sizes) gives a second, after one warming epoch."""
    for _ in batches():
        pass
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for size in batches():
            count += size
            if time.perf_counter() - began >= 2 * seconds:
                break
    return count / (time.perf_counter() - began)


def drop_from_page_cache(folder: Path) -> None:
    """Write all files below ``folder`` out and let the kernel forget them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_crops_a_second(batches: Callable[[], Iterable[int]], folder: Path) -> float:
    """Crops a second of one epoch whose files are not in the page cache; the median of three."""
    rates = []
    for _ in range(3):
        drop_from_page_cache(folder)
        began = time.perf_counter()
        count = sum(batches())
        rates.append(count / (time.perf_counter() - began))
    return sorted(rates)[1]


def decode_ratio(store: TileStore, folder: Path) -> float:
    """Speed of decoding into the node cache, as a share of bare decompression into the same kind of memory."""
    chunks = store.chunks()

    def bare(chunk: tuple[Any, str, int]) -> None:
        split, name, index = chunk
        shape = store.shape(split, name)
        packed = (Path(store.path) / split / name / "c" / str(index) / "/".join("0" * len(shape))).read_bytes()
        out = targets[split, name][index]
        Zstd().decode(packed, out=out.reshape(-1).view(np.uint8))

    ratios = []
    for attempt in range(5):
        began = time.perf_counter()
        open_tiles(store, folder / f"decode{attempt}", 10**11)
        ours = time.perf_counter() - began
        targets = {}
        for split, info in store.info.splits.items():
            for name in store.arrays:
                path = folder / f"bare{attempt}-{split}-{name}.npy"
                shape = (info.tiles, *store.shape(split, name))
                targets[split, name] = np.lib.format.open_memmap(path, "w+", store.dtype(name), shape)
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        began = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(bare, chunks))
        for target in targets.values():
            target.flush()
        ratios.append((time.perf_counter() - began) / ours)
        targets.clear()
    return sorted(ratios)[2]


def check_gb_a_second(store: TileStore, folder: Path) -> float:
    """GB a second of comparing an entry of the node cache with the store, in two threads; the best of five."""
    times = []
    for _ in range(5):
        for _, _, path in arrays_of(store, folder):
            os.utime(path)  # what has another time is checked again
        began = time.perf_counter()
        if (problem := damaged_tile(store, folder)) is not None:
            raise AssertionError(problem)
        times.append(time.perf_counter() - began)
    return decoded_bytes(store) / 1e9 / min(times)


def measure(name: str, tiles: int, seconds: float) -> dict[str, float]:
    """Crops a second of every way for one kind of tile."""
    folder = Path(tempfile.mkdtemp(prefix="cryobench-bench-"))
    try:
        spec = load_dataset(name)
        write_tiles(spec, folder / "raw", tiles)
        convert(spec, folder / "raw", folder / f"{name}.zarr")
        store = TileStore(folder / f"{name}.zarr")
        began = time.perf_counter()
        cached = open_tiles(store, folder / "cache", 10**11)("train")
        decode = (tiles + 2) / (time.perf_counter() - began)
        files = [(folder / "raw" / r.image, folder / "raw" / r.mask) for r in store.records("train")]
        groups = tuple(store.info.groups)
        feed = Feed(
            inputs={"optical": tuple(Source(group=g, index=i) for g in groups for i in range(len(spec.groups[g])))}
        )  # type: ignore[index, arg-type]
        preprocess = Preprocess(store.info, feed, "training", CROP)
        stats = [store.info.groups[g].statistics for g in groups]
        mean, std = (torch.tensor([v for s in stats for v in getattr(s, k)]).view(-1, 1, 1) for k in ("mean", "std"))
        sampler = EpochSampler(np.arange(tiles), (SIDE, SIDE), (CROP, CROP), BATCH, 8, 234)

        def reference() -> Iterable[int]:
            data = ReferenceDataset(files, mean, std)
            for batch in DataLoader(data, BATCH, shuffle=True, num_workers=2, drop_last=True):
                yield len(batch[0])

        def threads(source: Any, epochs: EpochSampler, prepare: bool) -> Callable[[], Iterable[int]]:
            def run() -> Iterable[int]:
                with BatchLoader(source, groups, threads=2, ahead=8, pin=False) as loader:
                    for batch in loader.load(epochs.epoch(1)):
                        if prepare:
                            preprocess(batch.groups)
                            preprocess.labels(batch.mask)
                        yield len(batch.mask)

            return run

        with BatchLoader(cached, groups, threads=1, ahead=1, pin=False) as loader:
            held = [
                [t.numpy().copy() for t in (*batch.groups.values(), batch.mask)]
                for batch in loader.load(sampler.epoch(1))
            ]
        targets = [np.empty_like(a) for a in held[0]]

        def copy() -> Iterable[int]:
            for arrays in held:
                for target, array in zip(targets, arrays, strict=True):
                    np.copyto(target, array)
                yield BATCH

        once = EpochSampler(np.arange(tiles), (SIDE, SIDE), (CROP, CROP), BATCH, 1, 234)
        check = check_gb_a_second(store, folder / "cache" / store.info.digest[:24])
        ours = crops_a_second(threads(cached, sampler, False), seconds)
        tile_gb = decoded_bytes(store) / 1e9 / (tiles + 2)
        return {
            "reference": crops_a_second(reference, seconds),
            "zarr": crops_a_second(threads(StoredTiles(store, "train"), once, False), seconds),
            "ours": ours,
            "ours_normalised_on_cpu": crops_a_second(threads(cached, sampler, True), seconds),
            "memory_copy": crops_a_second(copy, seconds),
            "reference_cold": cold_crops_a_second(reference, folder / "raw"),
            "zarr_cold": cold_crops_a_second(threads(StoredTiles(store, "train"), once, False), Path(store.path)),
            "ours_cold": cold_crops_a_second(threads(cached, once, False), folder / "cache"),
            "decode_tiles_a_second": decode,
            "decode_to_bare_decompression": decode_ratio(store, folder),
            "check_gb_a_second": check,
            "check_percent_of_80_epochs": 100 * (tile_gb / check) / (80 / ours),
        }
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(name, options.tiles, options.seconds) for name in KINDS}
    result = {
        "ratio_to_reference": {name: f["ours"] / f["reference"] for name, f in found.items()},
        "ratio_to_memory_copy": {name: f["ours"] / f["memory_copy"] for name, f in found.items()},
        "ratio_to_reference_cold": {name: f["ours_cold"] / f["reference_cold"] for name, f in found.items()},
        "decode_to_bare_decompression": {name: f["decode_to_bare_decompression"] for name, f in found.items()},
        "crops_a_second": found,
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for name, values in found.items():
        print(f"{name}-like tiles, {SIDE} px, crops of {CROP} px a second:")
        for way, rate in values.items():
            print(f"  {way:30} {rate:12,.2f}" if rate < 10 else f"  {way:30} {rate:12,.0f}")
        print(f"  ours to reference              {result['ratio_to_reference'][name]:12.1f}")
        print(f"  ours to reference, cold        {result['ratio_to_reference_cold'][name]:12.1f}")
        print(f"  ours to a memory copy          {result['ratio_to_memory_copy'][name]:12.2f}")


if __name__ == "__main__":
    main()
