"""Reader for folders of image and mask files, GeoTIFF or PNG, through rasterio.

Layouts: ``{split}/images|image`` with ``{split}/masks|mask``, ``images|labels/{split}``, or what the data set's YAML
says; paired by file name (without the masks' tag) or, where names differ, by sorted order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterWindow

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.errors import DataError, MissingDataError
from cryobench.conf.terms import SPLITS, Split
from cryobench.datasets.raw.rasters import make_tile, unequal_sizes
from cryobench.datasets.raw.reader import RawTile, TileFiles, Window
from cryobench.datasets.raw.source_files import require_plain, require_size

_SUFFIXES = {".tif", ".tiff", ".png"}
#: Others that GDAL has may refer to any file of this machine, whatever the name of the file that does.
_DRIVERS = ["GTiff", "PNG"]


def scan(spec: DatasetSpec, source: Path) -> list[TileFiles]:
    """All image and mask pairs below ``source``, in the order train, val, test and by file name within.

    Raises:
        MissingDataError: the folder, a split or its masks are not there.
        DataError: images and masks do not pair up.
    """
    if not source.is_dir():
        raise MissingDataError(
            f"No folder {source} to read '{spec.name}' from. Give --source the folder that holds "
            f"{' or '.join(p.format(split='train') for p in spec.layout.images)} (published: {spec.source or '?'})."
        )
    splits = [s for s in SPLITS if s != "val" or not _lacks_validation(spec, source)]
    return [files for split in splits for files in _pair(spec, source, split)]


def read(spec: DatasetSpec, files: TileFiles) -> RawTile:
    """One tile, checked: band count, size, dtype, finite values, label codes.

    Raises:
        DataError: the message names the file, what was found and what was expected.
    """
    image, crs, transform = _raster(files.image, files.window)
    mask, _, _ = _raster(files.mask, files.window)
    if image.shape[0] != len(spec.channels):
        names = " ".join(c.name for c in spec.channels)
        raise DataError(
            f"{files.image}: {image.shape[0]} bands, expected {len(spec.channels)} ({names}). "
            f"Is this file of data set '{spec.name}', with its bands in that order?"
        )
    if mask.shape[0] != 1:
        raise DataError(f"{files.mask}: {mask.shape[0]} bands, expected a mask with one.")
    return make_tile(spec, files, image, mask[0], crs, transform)


def shape(files: TileFiles) -> tuple[int, int]:
    """Height and width of a scene.

    Raises:
        DataError: the image cannot be read, or its mask has another size.
    """
    sizes = []
    for path in (files.image, files.mask):
        with _opened(path) as raster:
            require_size(path, raster.height, raster.width, whole=False)
            sizes.append((int(raster.height), int(raster.width)))
    if sizes[0] != sizes[1]:
        raise unequal_sizes(files, *sizes)
    return sizes[0]


def _lacks_validation(spec: DatasetSpec, source: Path) -> bool:
    return spec.layout.validation_share is not None and not any(
        (source / pattern.format(split="val")).is_dir() for pattern in spec.layout.images
    )


def _pair(spec: DatasetSpec, source: Path, split: Split) -> list[TileFiles]:
    images = _listed(spec, source, spec.layout.images, split, "images")
    masks = _listed(spec, source, spec.layout.masks, split, "masks")
    tag = spec.layout.mask_tag
    by_name = {path.stem.replace(tag, "", 1) if tag else path.stem: path for path in masks}
    if len(images) != len(masks):
        lone = sorted({p.stem for p in images} ^ by_name.keys())[:5]
        raise DataError(
            f"{source}: split '{split}' has {len(images)} images and {len(masks)} masks; expected one mask an image. "
            f"Without partner, by name: {', '.join(lone) or 'none'}."
        )
    if spec.layout.pairing == "order":
        return [TileFiles(split, i, m) for i, m in zip(images, masks, strict=True)]
    lone = [path.name for path in images if path.stem not in by_name]
    if lone:
        raise DataError(
            f"{source}: split '{split}' has images without a mask of the same name: {', '.join(lone[:5])}"
            f"{' …' if len(lone) > 5 else ''}. Rename them, or set layout.pairing: order in the data set's YAML."
        )
    return [TileFiles(split, path, by_name[path.stem]) for path in images]


def _listed(spec: DatasetSpec, source: Path, patterns: tuple[str, ...], split: Split, what: str) -> list[Path]:
    folders = [source / pattern.format(split=split) for pattern in patterns]
    for folder in folders:
        if folder.is_dir():
            found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
            if found:
                require_plain(found, source)
                return found
    raise MissingDataError(
        f"{source}: no {what} of '{spec.name}' for split '{split}'. Looked for *.tif and *.png in "
        + ", ".join(str(folder.relative_to(source)) for folder in folders)
        + "."
    )


def _raster(path: Path, window: Window | None) -> tuple[NDArray[Any], str | None, tuple[float, ...] | None]:
    """All bands of a file, or of the part of it that ``window`` covers."""
    with _opened(path) as raster:
        require_size(path, raster.height, raster.width, whole=window is None)
        part = None
        if window is not None:
            height = min(window.height, raster.height - window.top)
            part = RasterWindow(window.left, window.top, min(window.width, raster.width - window.left), height)
        crs = raster.crs.to_string() if raster.crs is not None else None
        placed = raster.window_transform(part) if part is not None else raster.transform
        return raster.read(window=part), crs, tuple(placed)[:6] if crs else None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.Env(), DatasetReader(str(path), driver=_DRIVERS) as raster:
                yield raster
    except RasterioError as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}). The file is damaged or not a GeoTIFF/PNG; fetch it again."
        ) from error
