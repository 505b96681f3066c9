"""Raw values to a tile: no-data filled, labels mapped to classes, a scene's window filled up to its size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.errors import DataError
from cryobench.conf.terms import IGNORE, Group
from cryobench.datasets.raw.reader import RawTile, TileFiles, Window

#: What a tile store holds as it is. Models take float32, to which 32-bit integers and float64 are rounded.
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def make_tile(
    spec: DatasetSpec,
    files: TileFiles,
    image: NDArray[Any],
    labels: NDArray[Any],
    crs: str | None = None,
    transform: tuple[float, ...] | None = None,
) -> RawTile:
    """A tile from what was read: ``image`` (C, H, W) and ``labels`` (H, W) of the part that lies in the scene.

    Raises:
        DataError: sizes that differ, NaN without ``nan_fill``, label values outside the coding.
    """
    _require_dtype(files.image, image.dtype)
    image = image.astype(image.dtype.newbyteorder("="), copy=False)  # netCDF may be big-endian; stores never are
    if labels.shape != image.shape[1:]:
        raise unequal_sizes(files, image.shape[1:], labels.shape)
    absent = absent_pixels(spec, files.image, image)
    mask = classes(spec, files.mask, labels)
    if absent is not None:
        image = np.where(absent, np.asarray(spec.nan_fill, image.dtype), image)
        seen = [i for i, channel in enumerate(spec.channels) if channel.group != "ancillary"]
        if spec.no_data_label == "ignore":
            mask[absent[seen].all(axis=0)] = IGNORE
    groups: dict[Group, NDArray[np.generic]] = {}
    missing: dict[Group, tuple[int, ...]] = {}
    window = files.window
    if window is not None:
        mask[: window.fresh_top] = IGNORE
        mask[:, : window.fresh_left] = IGNORE
        mask = _filled_up(mask, window, IGNORE)
    for group in spec.groups:
        members = spec.members(group)
        if absent is not None:
            missing[group] = tuple(absent[members].sum(axis=(1, 2)).tolist())
        chosen = image[members]
        groups[group] = np.ascontiguousarray(chosen if window is None else _filled_up(chosen, window, spec.nan_fill))
    return RawTile(groups, mask, crs, transform, missing or None)


def _require_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.name not in DTYPES:
        raise DataError(
            f"{path}: dtype {dtype}, expected one of {', '.join(DTYPES)}. Nothing is cast on the way: convert the "
            "files to one of these, where that loses nothing (magnitude and phase of complex values as two bands)."
        )


def unequal_sizes(files: TileFiles, image: tuple[int, ...], mask: tuple[int, ...]) -> DataError:
    """What to say of an image and a mask (H, W) that do not cover the same pixels."""
    return DataError(
        f"{files.mask}: {mask[1]} x {mask[0]} pixels, but its image {files.image.name} has {image[1]} x {image[0]}. "
        "Image and mask must cover the same pixels."
    )


def absent_pixels(spec: DatasetSpec, path: Path, image: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where ``image`` (C, H, W) holds no data, or None where it holds data everywhere."""
    absent = ~np.isfinite(image) if image.dtype.kind == "f" else np.zeros(image.shape, bool)
    count = int(absent.sum())
    if count and spec.nan_fill is None:
        raise DataError(
            f"{path}: {count} values are NaN or infinite. Set nan_fill in the data set's YAML to what they should "
            "become, or repair the file."
        )
    if spec.no_data is not None:
        absent |= image == spec.no_data
    return absent if absent.any() else None


def classes(spec: DatasetSpec, path: Path, raw: NDArray[Any]) -> NDArray[np.uint8]:
    """Raw label values (H, W) as classes, 255 where there is no label.

    Raises:
        DataError: a value outside the coding; the message names the file, the value and the count.
    """
    if raw.dtype.kind not in "uif":
        raise DataError(f"{path}: labels of dtype {raw.dtype}, expected whole numbers.")
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


def _filled_up(values: NDArray[Any], window: Window, fill: float | None) -> NDArray[Any]:
    """``values`` (..., h, w) at the top left of an array of the window's size."""
    height, width = values.shape[-2:]
    if (height, width) == (window.height, window.width):
        return values
    full = np.full((*values.shape[:-2], window.height, window.width), fill or 0, values.dtype)
    full[..., :height, :width] = values
    return full
