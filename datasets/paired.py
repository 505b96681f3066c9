"""Reader for folders of image and mask files, GeoTIFF or PNG, through rasterio.

Layouts: ``{split}/images|image`` with ``{split}/masks|mask``, and ``images|labels/{split}``; paired by file name
or, where names differ, by sorted order.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from cryobench.conf.errors import DataError, MissingDataError
from cryobench.conf.schema import IGNORE, SPLITS, DatasetSpec, Group, Split
from cryobench.datasets.tiles import RawTile, TileFiles

_SUFFIXES = {".tif", ".tiff", ".png"}


def scan(spec: DatasetSpec, source: Path) -> list[TileFiles]:
    """All tiles below ``source``, in the order train, val, test and by file name within.

    Raises:
        MissingDataError: the folder, a split or its masks are not there.
        DataError: images and masks do not pair up.
    """
    if not source.is_dir():
        raise MissingDataError(
            f"No folder {source} to read '{spec.name}' from. Give --source the folder that holds "
            f"{' or '.join(p.format(split='train') for p in spec.layout.images)} (published: {spec.source or '?'})."
        )
    return [files for split in SPLITS for files in _pair(spec, source, split)]


def read(spec: DatasetSpec, files: TileFiles) -> RawTile:
    """One tile, checked: band count, size, dtype, finite values, label codes.

    Raises:
        DataError: the message names the file, what was found and what was expected.
    """
    image, crs, transform = _raster(files.image)
    mask, _, _ = _raster(files.mask)
    if image.shape[0] != len(spec.channels):
        names = " ".join(c.name for c in spec.channels)
        raise DataError(
            f"{files.image}: {image.shape[0]} bands, expected {len(spec.channels)} ({names}). "
            f"Is this file of data set '{spec.name}', with its bands in that order?"
        )
    if mask.shape[0] != 1:
        raise DataError(f"{files.mask}: {mask.shape[0]} bands, expected a mask with one.")
    if mask.shape[1:] != image.shape[1:]:
        raise DataError(
            f"{files.mask}: {mask.shape[2]} x {mask.shape[1]} pixels, but its image {files.image.name} has "
            f"{image.shape[2]} x {image.shape[1]}. Image and mask must cover the same pixels."
        )
    if image.dtype.kind == "f":
        image = _filled(spec, files.image, image)
    groups: dict[Group, NDArray[np.generic]] = {}
    for group in spec.groups:
        chosen = [i for i, channel in enumerate(spec.channels) if channel.group == group]
        groups[group] = np.ascontiguousarray(image[chosen])
    return RawTile(groups=groups, mask=_classes(spec, files.mask, mask[0]), crs=crs, transform=transform)


def _pair(spec: DatasetSpec, source: Path, split: Split) -> list[TileFiles]:
    images = _listed(spec, source, spec.layout.images, split, "images")
    masks = _listed(spec, source, spec.layout.masks, split, "masks")
    if len(images) != len(masks):
        lone = sorted({p.stem for p in images} ^ {p.stem for p in masks})[:5]
        raise DataError(
            f"{source}: split '{split}' has {len(images)} images and {len(masks)} masks; expected one mask an image. "
            f"Without partner, by name: {', '.join(lone) or 'none'}."
        )
    if spec.layout.pairing == "order":
        return [TileFiles(split, i, m) for i, m in zip(images, masks, strict=True)]
    by_name = {path.stem: path for path in masks}
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
                return found
    raise MissingDataError(
        f"{source}: no {what} of '{spec.name}' for split '{split}'. Looked for *.tif and *.png in "
        + ", ".join(str(folder.relative_to(source)) for folder in folders)
        + "."
    )


def _raster(path: Path) -> tuple[NDArray[Any], str | None, tuple[float, ...] | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as raster:
                georeferenced = raster.crs is not None
                crs = raster.crs.to_string() if georeferenced else None
                transform = tuple(raster.transform)[:6] if georeferenced else None
                return raster.read(), crs, transform
    except RasterioError as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}). The file is damaged or not a GeoTIFF/PNG; fetch it again."
        ) from error


def _filled(spec: DatasetSpec, path: Path, image: NDArray[Any]) -> NDArray[Any]:
    bad = ~np.isfinite(image)
    count = int(bad.sum())
    if not count:
        return image
    if spec.nan_fill is None:
        raise DataError(
            f"{path}: {count} values are NaN or infinite. Set nan_fill in the data set's YAML to what they should "
            "become, or repair the file."
        )
    return np.where(bad, np.asarray(spec.nan_fill, image.dtype), image)


def _classes(spec: DatasetSpec, path: Path, raw: NDArray[Any]) -> NDArray[np.uint8]:
    codes = spec.mask_codes or {i: i for i in range(len(spec.classes))}
    mask = np.full(raw.shape, IGNORE, np.uint8)
    known = np.zeros(raw.shape, bool)
    for value, label in codes.items():
        here = raw == value
        mask[here] = label
        known |= here
    if spec.mask_ignore is not None:
        known |= raw == spec.mask_ignore
    if not known.all():
        values, counts = np.unique(raw[~known], return_counts=True)
        found = ", ".join(f"{v} ({c} pixels)" for v, c in zip(values[:5], counts[:5], strict=True))
        raise DataError(
            f"{path}: label values outside the coding: {found}. Expected {sorted(codes)}"
            + (f" or {spec.mask_ignore} for unlabelled" if spec.mask_ignore is not None else "")
            + f" ({', '.join(spec.classes)}). Set mask_codes or mask_ignore in the data set's YAML if they are right."
        )
    return mask
