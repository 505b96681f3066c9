"""netCDF scenes that are damaged, or name values in other files: clear errors, or right; none hangs its reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pytest
from hypothesis import given
from test_fuzz import Damage, answered, damages, examples

from cryobench.conf.compose import load_dataset
from cryobench.conf.errors import DataError
from cryobench.datasets.raw.ai4arctic import read, shape
from cryobench.datasets.raw.reader import RawTile, TileFiles

SPEC = load_dataset("sicd")
BAND = "nersc_sar_primary"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A netCDF-4 scene with the variables of the data set sicd."""
    path, rng = tmp_path_factory.mktemp("scene") / "x.nc", np.random.default_rng(0)
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"lines": 32, "samples": 32}
        for name in (BAND, "nersc_sar_secondary", "sar_incidenceangle"):
            values = rng.random((32, 32)).astype(np.float32)
            file.create_variable(name, ("lines", "samples"), data=values, compression="gzip", chunks=(16, 16))
        file.create_variable("SOD", ("lines", "samples"), data=rng.integers(0, 6, (32, 32)).astype(np.uint8))
    return path.read_bytes()


def opened(path: Path) -> RawTile:
    files = TileFiles("train", path, path)
    shape(files)
    return read(SPEC, files)


def external(file: Any, elsewhere: Path) -> None:
    file.create_dataset(BAND, (32, 32), "f4", external=[(str(elsewhere), 0, 4096)])


def virtual(file: Any, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((32, 32), "f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), "x", (32, 32))
    file.create_virtual_dataset(BAND, layout)


CHANGES: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "values in another file": (external, "lie in other files"),
    "values of another data set": (virtual, "lie in other files"),
    "a link into another file": (lambda file, far: file.__setitem__(BAND, h5py.ExternalLink(str(far), "x")), "a link"),
    "a link": (lambda file, _: file.__setitem__(BAND, h5py.SoftLink("/SOD")), "is a link"),
    "a group": (lambda file, _: file.create_group(BAND), "no grid of lines and samples"),
    "one number": (lambda file, _: file.create_dataset(BAND, data=1.0), "no grid of lines and samples"),
    "no values": (lambda file, _: file.create_dataset(BAND, data=h5py.Empty("f4")), "no grid of lines and samples"),
    "texts": (lambda file, _: file.create_dataset(BAND, data=[["a"] * 32] * 32), "x.nc"),
    "nothing": (lambda file, _: None, f"no variable {BAND}"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_variable_that_is_no_grid_of_the_files_own_values_is_refused(tmp_path: Path, scene: bytes, name: str) -> None:
    path, elsewhere = tmp_path / "x.nc", tmp_path / "elsewhere.h5"
    path.write_bytes(scene)
    assert opened(path).groups["sar"].shape[-2:] == (32, 32)
    with h5py.File(elsewhere, "w") as other:
        other.create_dataset("x", data=np.ones((32, 32), np.float32))
    change, expected = CHANGES[name]
    with h5py.File(path, "r+") as file:
        del file[BAND]
        change(file, elsewhere)
    with pytest.raises(DataError, match=expected):
        read(SPEC, TileFiles("train", path, path))


@pytest.mark.slow
@examples(600)
@given(damage=damages())
def test_damaged_scenes(tmp_path: Path, scene: bytes, damage: Damage) -> None:
    path = tmp_path / "x.nc"
    path.write_bytes(damage(scene))
    answered(lambda: opened(path))
