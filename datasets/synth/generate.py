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

from cryobench.conf.dataset_spec import DatasetSpec, GridSpec
from cryobench.conf.errors import DataError, UnknownNameError, storage_trouble
from cryobench.conf.streams import stream
from cryobench.conf.terms import SPLITS
from cryobench.datasets.store.description import ORIGIN_FILE
from cryobench.datasets.synth.debris import debris_scene
from cryobench.datasets.synth.fronts import front_scene
from cryobench.datasets.synth.ice import ice_scene
from cryobench.datasets.synth.lakes import lake_scene
from cryobench.datasets.synth.radar_lakes import radar_lake_scene

Scene = Callable[[np.random.Generator, int], tuple[NDArray[Any], NDArray[np.uint8]]]


@dataclass(frozen=True)
class Recipe:
    """How one data set is generated: its scene, and the folders and suffix of its published layout.

    ``whole_scenes``: the published files are scenes larger than a tile, cut when they are converted.
    """

    scene: Scene
    images: str
    masks: str
    suffix: str
    crs: str | None = None
    gsd: int = 10
    whole_scenes: bool = False


RECIPES = {
    "caffe": Recipe(front_scene, "images/{split}", "labels/{split}", ".png"),
    "gld": Recipe(radar_lake_scene, "{split}/image", "{split}/mask", ".tif", crs="EPSG:32645"),
    "glid": Recipe(lake_scene, "{split}/images", "{split}/masks", ".tif", crs="EPSG:32645"),
    "gsdd": Recipe(debris_scene, "{split}/image", "{split}/mask", ".tif", crs="EPSG:32643"),
    "sicd": Recipe(ice_scene, "{split}/images", "{split}/masks", ".tif", crs="EPSG:3413", gsd=80, whole_scenes=True),
}
#: Tiles that are cut from a generated scene, two a side.
_TILES_A_SCENE = 4
#: More than anything generated is good for.
_MOST_TILES, _MOST_PIXELS = 10_000, 4096


def fitted(spec: DatasetSpec, size: int) -> DatasetSpec:
    """``spec`` for generated files: its scenes are cut into tiles of ``size`` pixels a side."""

    def smaller(grid: GridSpec | None) -> GridSpec | None:
        return grid and grid.model_copy(update={"side": size})

    editions = {name: one.model_copy(update={"grid": smaller(one.grid)}) for name, one in spec.editions.items()}
    return spec.model_copy(update={"grid": smaller(spec.grid), "editions": editions})


def generate(
    name: str,
    target: Path,
    *,
    tiles: tuple[int, int, int] = (24, 8, 8),
    size: int = 128,
    seed: int = 234,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write raw files that give ``tiles`` (train, val, test) tiles of ``size`` pixels a side below ``target``.

    Where whole scenes are published, they are a little less than two tiles a side, and their number is rounded up. The
    same arguments give the same files. A file `ORIGIN_FILE` says that they are generated; the store and the
    leaderboard repeat it.

    Raises:
        UnknownNameError: no recipe of that name.
        DataError: ``target`` holds something that was not generated.
    """
    if name not in RECIPES:
        raise UnknownNameError("generated data set", name, RECIPES)
    if not all(1 <= count <= _MOST_TILES for count in tiles) or size > _MOST_PIXELS:
        raise DataError(
            f"{' / '.join(map(str, tiles))} tiles of {size} pixels a side; expected 1 to {_MOST_TILES:,} a split and "
            f"at most {_MOST_PIXELS:,} pixels."
        )
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
        counts = [-(-count // _TILES_A_SCENE) for count in tiles] if recipe.whole_scenes else tiles
        for split, count in zip(SPLITS, counts, strict=True):
            for number in range(count):
                rng = stream(seed, "synth", name, split, number)
                side = int(size * rng.uniform(1.75, 2)) if recipe.whole_scenes else size
                image, mask = recipe.scene(rng, side)
                name_of = f"{split}_{number:04d}" if recipe.whole_scenes else f"{number:04d}"
                for folder, values in ((recipe.images, image), (recipe.masks, mask[None])):
                    path = target / folder.format(split=split) / f"{name_of}{recipe.suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write(path, values, recipe, number)
                done += 1
                progress(done, sum(counts))
    except OSError as error:
        raise storage_trouble(error, target) or error from error


def _write(path: Path, values: NDArray[Any], recipe: Recipe, number: int) -> None:
    count, height, width = values.shape
    driver = {".tif": "GTiff", ".png": "PNG"}[path.suffix]
    profile: dict[str, Any] = {
        "driver": driver,
        "count": count,
        "height": height,
        "width": width,
        "dtype": values.dtype,
    }
    if recipe.crs:
        west, gsd = 500_000 + number * width * recipe.gsd, recipe.gsd
        profile |= {"crs": recipe.crs, "transform": from_origin(west, 3_100_000, gsd, gsd)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as raster:
            raster.write(values)
