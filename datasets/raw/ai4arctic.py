"""Reader for AI4Arctic's ready-to-train scenes: one netCDF-4 file a scene, which is an HDF5 file.

Variables are read by their names with h5py. What makes them netCDF, scales of dimensions and their names, is not looked
at: nothing needs it, and damage there keeps readers of it busy for ever.

``train/*.nc`` hold image and chart; the charts of ``test/X.nc`` may lie beside them in ``test/X_reference.nc``, as the
challenge published them. Variables: nersc_sar_primary (HH), nersc_sar_secondary (HV), sar_incidenceangle, SOD.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.errors import CryobenchError, DataError, MissingDataError
from cryobench.conf.terms import SPLITS, Split
from cryobench.datasets.raw.rasters import make_tile
from cryobench.datasets.raw.reader import RawTile, TileFiles, Window
from cryobench.datasets.raw.source_files import require_plain, require_size

_VARIABLES = {"HH": "nersc_sar_primary", "HV": "nersc_sar_secondary", "incidence_angle": "sar_incidenceangle"}
_CHART = "SOD"
_REFERENCE = "_reference"


def scan(spec: DatasetSpec, source: Path) -> list[TileFiles]:
    """All scenes below ``source``; a split without files is left to ``layout.validation_share`` if it is ``val``.

    Raises:
        MissingDataError: a split has no files.
    """
    found = []
    for split in SPLITS:
        scenes = list(_scenes(source / split, split))
        if not scenes and not (split == "val" and spec.layout.validation_share):
            raise MissingDataError(f"{source}: no scenes of '{spec.name}' for split '{split}' ({split}/*.nc).")
        found += scenes
    require_plain({path for scene in found for path in (scene.image, scene.mask)}, source)
    return found


def read(spec: DatasetSpec, files: TileFiles) -> RawTile:
    """One tile of a scene.

    Raises:
        DataError: a variable that is not there, a size that differs, a label outside the coding.
    """
    with _opened(files.image) as scene:
        bands = [_values(scene, files.image, _VARIABLES[c.name], files.window) for c in spec.channels]
    with _opened(files.mask) as scene:
        chart = _values(scene, files.mask, _CHART, files.window)
    if chart.dtype.kind == "f":
        chart = np.where(np.isfinite(chart), chart, -1 if spec.mask_ignore is None else spec.mask_ignore)
    return make_tile(spec, files, np.stack(bands), chart)


def shape(files: TileFiles) -> tuple[int, int]:
    """Height and width of a scene."""
    with _opened(files.image) as scene:
        height, width = _variable(scene, files.image, _VARIABLES["HH"]).shape
    return int(height), int(width)


def _scenes(folder: Path, split: Split) -> Iterator[TileFiles]:
    for path in sorted(folder.glob("*.nc")):
        if not path.stem.endswith(_REFERENCE):
            reference = path.with_name(f"{path.stem}{_REFERENCE}.nc")
            yield TileFiles(split, path, reference if reference.exists() else path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A scene; whatever is raised while it is open and no error of ours says that the file is damaged."""
    try:
        with h5py.File(path, "r") as scene:
            yield scene
    except CryobenchError:
        raise
    except Exception as error:  # a damaged file can make HDF5's binding raise nearly anything
        raise DataError(
            f"{path}: cannot be read as netCDF-4 ({type(error).__name__}: {str(error)[:200]}). The file is damaged or "
            "of another kind; fetch it again."
        ) from error


def _variable(scene: Any, path: Path, name: str) -> Any:
    """A variable of two dimensions whose values lie in the file itself; HDF5 could name any other, too."""
    link = scene.get(name, getlink=True)
    if link is None:
        raise DataError(
            f"{path}: no variable {name}; found {', '.join(list(scene)[:12])}. "
            "Expected a ready-to-train scene of AI4Arctic."
        )
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{path}: variable {name} is a link, expected values in the file itself.")
    variable = scene[name]
    if not isinstance(variable, h5py.Dataset) or len(variable.shape or ()) != 2:
        raise DataError(f"{path}: variable {name} is no grid of lines and samples.")
    if variable.external or variable.is_virtual:
        raise DataError(f"{path}: the values of variable {name} lie in other files, expected them in this one.")
    return variable


def _values(scene: Any, path: Path, name: str, window: Window | None) -> NDArray[Any]:
    variable = _variable(scene, path, name)
    require_size(path, *variable.shape, whole=window is None)
    if window is None:
        return np.asarray(variable[...])
    rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
    return np.asarray(variable[rows, columns])
