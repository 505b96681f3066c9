"""From a source folder to its tiles: which edition it is, which splits it has, how its scenes are cut."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cryobench.conf.dataset_spec import DatasetSpec, GridSpec
from cryobench.conf.digests import file_sha256
from cryobench.conf.errors import DataError, MissingDataError
from cryobench.conf.terms import SPLITS
from cryobench.datasets.raw.reader import TileFiles, Window, reader_for


def survey(spec: DatasetSpec, source: Path) -> tuple[str, list[TileFiles]]:
    """The edition that ``source`` holds, and all its tiles in the order train, val, test.

    Raises:
        MissingDataError: no edition is there, or one lacks a split.
        DataError: files that do not pair up, or a scene that lies in two splits.
    """
    name, files = _edition(spec, source)
    one = spec.edition(name)
    if one.grid is not None:
        _require_apart(spec, files)
        reader = reader_for(one)
        files = [tile for scene in files for tile in _cut(scene, reader.shape(scene), one.grid)]
    return name, files


def _edition(spec: DatasetSpec, source: Path) -> tuple[str, list[TileFiles]]:
    """The edition that ``source`` holds, and its files by split, not cut yet."""
    complaints: dict[str, MissingDataError] = {}
    for name in spec.editions or ("",):
        one = spec.edition(name)
        try:
            files = reader_for(one).scan(one, source)
        except MissingDataError as error:
            complaints[name] = error
            continue
        if one.layout.validation_share is not None:
            files = _with_validation(files, one.layout.validation_share)
        return name, files
    if len(complaints) == 1:
        raise next(iter(complaints.values()))
    reasons = "; ".join(f"{name}: {error}" for name, error in complaints.items())
    raise MissingDataError(f"{source} holds no edition of '{spec.name}' that is known. {reasons}")


def source_of(spec: DatasetSpec, folder: Path, depth: int = 4) -> Path:
    """The folder at or below ``folder`` (an unpacked archive, say) in which `survey` finds the data set.

    Raises:
        MissingDataError: there is none; the message is that of ``folder`` itself.
        DataError: the data are there, but not whole.
    """
    level = [folder]
    for _ in range(depth):
        for candidate in level:
            try:
                _edition(spec, candidate)
            except MissingDataError:
                continue
            return candidate
        level = [child for parent in level for child in sorted(parent.iterdir()) if child.is_dir()]
        if len(level) > 200:
            break
    _edition(spec, folder)
    return folder


def grid_offsets(length: int, grid: GridSpec) -> list[int]:
    """Where tiles begin along a side of ``length`` pixels; the last one is shifted back to the edge."""
    if length <= grid.side:
        return [0]
    step = grid.side - grid.overlap
    offsets = list(range(0, length - grid.side, step))
    return [*offsets, length - grid.side]


def _cut(scene: TileFiles, shape: tuple[int, int], grid: GridSpec) -> Iterator[TileFiles]:
    once = scene.split != "train"
    bottom = 0
    for top in grid_offsets(shape[0], grid):
        right = 0
        for left in grid_offsets(shape[1], grid):
            fresh = (max(0, bottom - top), max(0, right - left)) if once else (0, 0)
            yield TileFiles(scene.split, scene.image, scene.mask, Window(top, left, grid.side, grid.side, *fresh))
            right = left + grid.side
        bottom = top + grid.side


def _with_validation(files: list[TileFiles], share: float) -> list[TileFiles]:
    """``files`` with part of the training scenes in ``val``, unless there is a validation split already."""
    if any(one.split == "val" for one in files):
        return files
    scenes = {_scene(one) for one in files if one.split == "train"}
    first = sorted(scenes, key=lambda name: hashlib.sha256(name.encode()).digest())
    chosen = set(first[: max(1, round(share * len(scenes)))])
    moved = [replace(f, split="val") if f.split == "train" and _scene(f) in chosen else f for f in files]
    return sorted(moved, key=lambda one: SPLITS.index(one.split))


def _require_apart(spec: DatasetSpec, files: list[TileFiles]) -> None:
    """Raise if two splits hold the same file; names alone may be numbers that begin anew in every split."""
    home: dict[str, TileFiles] = {}
    for one in files:
        other = home.setdefault(_scene(one), one)
        if other.split != one.split and file_sha256(other.image) == file_sha256(one.image):
            raise DataError(
                f"{one.image}: scene {_scene(one)} of '{spec.name}' lies in the splits {other.split} and {one.split}. "
                "Splits may not share a scene: remove it from one of them."
            )


def _scene(files: TileFiles) -> str:
    """The scene's name; tiles that were cut by others have their place in it after two underscores."""
    return files.image.stem.partition("__")[0]
