"""Writes a generated data set as the raw files of a published layout, so that it goes through the same door."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from cryobench.conf.errors import DataError, UnknownNameError, disk_full
from cryobench.conf.schema import SPLITS
from cryobench.conf.streams import stream
from cryobench.datasets.convert import ORIGIN_FILE
from cryobench.datasets.synth.fronts import front_scene
from cryobench.datasets.synth.lakes import lake_scene

Scene = Callable[[np.random.Generator, int], tuple[NDArray[Any], NDArray[np.uint8]]]


@dataclass(frozen=True)
class Recipe:
    """How one data set is generated: its scene, and the folders and suffix of its published layout."""

    scene: Scene
    images: str
    masks: str
    suffix: str
    crs: str | None = None


RECIPES = {
    "glid": Recipe(lake_scene, "{split}/images", "{split}/masks", ".tif", crs="EPSG:32645"),
    "caffe": Recipe(front_scene, "images/{split}", "labels/{split}", ".png"),
}


def generate(
    name: str,
    target: Path,
    *,
    tiles: tuple[int, int, int] = (24, 8, 8),
    size: int = 128,
    seed: int = 234,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``tiles`` (train, val, test) scenes of ``size`` pixels a side below ``target``.

    The same arguments give the same files. A file `ORIGIN_FILE` says that they are generated; the store and the
    leaderboard repeat it.

    Raises:
        UnknownNameError: no recipe of that name.
        DataError: ``target`` holds something that was not generated.
    """
    if name not in RECIPES:
        raise UnknownNameError("generated data set", name, RECIPES)
    if size < 32:
        raise DataError(f"Scenes of {size} pixels a side are too small to hold anything; give at least 32.")
    if target.exists() and any(target.iterdir()) and not (target / ORIGIN_FILE).exists():
        raise DataError(f"{target} holds files that were not generated; choose an empty folder with --raw-dir.")
    recipe = RECIPES[name]
    try:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / ORIGIN_FILE).write_text(f"generated (seed {seed}, {size} px)\n")
        done = 0
        for split, count in zip(SPLITS, tiles, strict=True):
            for number in range(count):
                image, mask = recipe.scene(stream(seed, "synth", name, split, number), size)
                for folder, values in ((recipe.images, image), (recipe.masks, mask[None])):
                    path = target / folder.format(split=split) / f"{number:04d}{recipe.suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write(path, values, recipe.crs, number)
                done += 1
                progress(done, sum(tiles))
    except OSError as error:
        raise disk_full(error, target) or error from error


def _write(path: Path, values: NDArray[Any], crs: str | None, number: int) -> None:
    count, height, width = values.shape
    driver = {".tif": "GTiff", ".png": "PNG"}[path.suffix]
    profile: dict[str, Any] = {
        "driver": driver,
        "count": count,
        "height": height,
        "width": width,
        "dtype": values.dtype,
    }
    if crs:
        profile |= {"crs": crs, "transform": from_origin(500_000 + number * width * 10, 3_100_000, 10, 10)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as raster:
            raster.write(values)
