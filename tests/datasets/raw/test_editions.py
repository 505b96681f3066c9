"""Every published form of the five data sets, written small and read back pixel by pixel."""

from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from cryobench.conf.compose import load_dataset
from cryobench.conf.dataset_spec import DatasetSpec, GridSpec
from cryobench.conf.errors import DataError, MissingDataError
from cryobench.datasets.raw.scenes import grid_offsets, source_of, survey
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.store.verify import verify
from cryobench.datasets.synth.generate import fitted

ZONES = np.array([0, 64, 127, 254], np.uint8)
RNG = np.random.default_rng(0)


def save(path: Path, values: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values if values.ndim == 3 else values[None]
    driver = "PNG" if path.suffix == ".png" else "GTiff"
    profile = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    with rasterio.open(path, "w", driver=driver, **profile) as raster:
        raster.write(values)


def caffe_file(folder: Path, split: str, name: str, suffix: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """One picture with its zones and front; the classes that were written."""
    classes = RNG.integers(0, 4, shape).astype(np.uint8)
    save(folder / "sar_images" / split / f"{name}{suffix}.png", classes * 50 + 7)
    save(folder / "zones" / split / f"{name}_zones{suffix}.png", ZONES[classes])
    save(folder / "fronts" / split / f"{name}_front{suffix}.png", np.zeros(shape, np.uint8))
    return classes


def netcdf(path: Path, bands: NDArray[np.float32], chart: NDArray[np.uint8] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("nersc_sar_primary", "nersc_sar_secondary", "sar_incidenceangle")
    with h5netcdf.File(path, "w") as scene:
        scene.dimensions = {"sar_lines": bands.shape[1], "sar_samples": bands.shape[2]}
        for name, values in zip(names, bands, strict=True):
            scene.create_variable(name, ("sar_lines", "sar_samples"), data=values)
        if chart is not None:
            scene.create_variable("SOD", ("sar_lines", "sar_samples"), data=chart, fillvalue=np.uint8(255))


def ice(shape: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    chart = RNG.integers(0, 6, shape).astype(np.uint8)
    bands = np.stack([chart, chart * 2, chart * 3]).astype(np.float32)
    bands[:, :, :5] = np.nan
    chart[0, 10:13] = 255
    return bands, chart


def made(spec: DatasetSpec, source: Path, tmp_path: Path) -> TileStore:
    convert(spec, source, tmp_path / "made.zarr")
    store = TileStore(tmp_path / "made.zarr")
    assert verify(store) == []
    return store


def test_caffe_tiled(tmp_path: Path) -> None:
    """Image Crane_…_061__93_102_0_0_0.png goes with zones Crane_…_061_zones__93_102_0_0_0.png."""
    expected = {}
    for split, tiles in (("train", 3), ("val", 1), ("test", 2)):
        for i in range(tiles):
            name = "Crane_2002-11-09_ERS_20_2_061"
            suffix = f"__93_102_{i}_0_0"
            expected[split, i] = caffe_file(tmp_path / "caffe", split, name, suffix, (512, 512))
    store = made(load_dataset("caffe"), tmp_path / "caffe", tmp_path)
    assert store.info.edition == "tiled"
    assert {s: found.tiles for s, found in store.info.splits.items()} == {"train": 3, "val": 1, "test": 2}
    for (split, i), classes in expected.items():
        np.testing.assert_array_equal(store.tile(split, "mask", i), classes)  # type: ignore[arg-type]
        np.testing.assert_array_equal(store.tile(split, "sar", i)[0], classes * 50 + 7)  # type: ignore[arg-type]


def test_caffe_scenes_are_cut_and_a_validation_split_is_made_of_whole_scenes(tmp_path: Path) -> None:
    shapes = [(96, 150), (64, 64), (40, 130), (70, 70), (64, 100), (80, 64), (65, 65)]
    for i, shape in enumerate(shapes):
        caffe_file(tmp_path / "caffe", "train", f"Crane_2002-11-{i:02}_ERS_20_2_061", "", shape)
    caffe_file(tmp_path / "caffe", "test", "Mapple_2002-11-09_ERS_20_2_061", "", (64, 64))
    spec = fitted(load_dataset("caffe"), 64)
    store = made(spec, tmp_path / "caffe", tmp_path)
    assert store.info.edition == "scenes"
    homes = {split: {r.image.rpartition("/")[2] for r in store.records(split)} for split in ("train", "val", "test")}
    assert len(homes["val"]) == 1  # 15 % of seven
    assert not homes["val"] & homes["train"]
    assert len(homes["val"] | homes["train"]) == 7
    again = survey(spec, tmp_path / "caffe")[1]
    assert {f.image.name for f in again if f.split == "val"} == homes["val"]


def test_caffe_in_the_references_form(tmp_path: Path) -> None:
    classes = RNG.integers(0, 4, (512, 700)).astype(np.uint8)
    for split in ("train", "val", "test"):
        save(tmp_path / "c" / "images" / split / "1.png", classes * 60)
        save(tmp_path / "c" / "labels" / split / "1.png", classes)
    with pytest.raises(DataError, match="scene 1 of 'caffe' lies in the splits train and val"):
        convert(load_dataset("caffe"), tmp_path / "c", tmp_path / "made.zarr")
    for i, split in enumerate(("train", "val", "test")):
        save(tmp_path / "c" / "images" / split / "1.png", classes * 60 + i)
    store = made(load_dataset("caffe"), tmp_path / "c", tmp_path)
    assert store.info.edition == "reference"
    assert store.info.splits["train"].tiles == 2
    np.testing.assert_array_equal(store.tile("train", "mask", 1), classes[:, 188:])
    second = store.tile("test", "mask", 1)  # its first columns lie in the first tile, and count there
    assert (second[:, : 512 - 188] == 255).all()
    np.testing.assert_array_equal(second[:, 512 - 188 :], classes[:, 512:])


def test_a_zone_outside_the_coding_names_file_value_and_count(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        caffe_file(tmp_path / "caffe", split, "Crane", f"__{split}", (64, 64))
    zones = np.full((64, 64), 64, np.uint8)
    zones[0, :3] = 200
    save(tmp_path / "caffe" / "zones" / "val" / "Crane_zones__val.png", zones)
    with pytest.raises(DataError, match=r"Crane_zones__val.png: label values outside the coding: 200 \(3 pixels\)"):
        convert(load_dataset("caffe"), tmp_path / "caffe", tmp_path / "a.zarr")


def check_ice(store: TileStore, split: str, bands: NDArray[np.float32], chart: NDArray[np.uint8]) -> None:
    """Every labelled pixel of a scene is labelled in one tile of ``split`` alone, with the right values."""
    seen = np.zeros(chart.shape, int)
    for i, record in enumerate(store.records(split)):  # type: ignore[arg-type]
        assert record.window is not None
        top, left, side, _ = record.window
        mask = store.tile(split, "mask", i)  # type: ignore[arg-type]
        sar = store.tile(split, "sar", i)  # type: ignore[arg-type]
        height, width = min(side, chart.shape[0] - top), min(side, chart.shape[1] - left)
        part = np.s_[top : top + height, left : left + width]
        labelled = mask[:height, :width] != 255
        seen[part] += labelled
        np.testing.assert_array_equal(mask[:height, :width][labelled], chart[part][labelled])
        np.testing.assert_array_equal(sar[:, :height, :width], np.nan_to_num(bands[(slice(0, 2), *part)], nan=0.0))
        assert (mask[height:] == 255).all()
        assert (mask[:, width:] == 255).all()
    meaningful = (chart != 255) & np.isfinite(bands[0])
    np.testing.assert_array_equal(seen, meaningful)


def test_sicd_geotiff(tmp_path: Path) -> None:
    scenes = {split: ice((150, 70)) for split in ("train", "val", "test")}
    for split, (bands, chart) in scenes.items():
        save(tmp_path / "s" / split / "images" / f"{split}.tif", bands)
        save(tmp_path / "s" / split / "masks" / f"{split}.tif", chart)
    store = made(fitted(load_dataset("sicd"), 64), tmp_path / "s", tmp_path)
    assert store.info.edition == "geotiff"
    assert store.info.splits["test"].tiles == 6
    check_ice(store, "test", *scenes["test"])
    sar = store.info.groups["sar"].statistics
    assert all(0.03 < share < 0.06 for share in sar.missing)
    train = np.concatenate([store.tile("train", "sar", i).reshape(2, -1) for i in range(6)], axis=1).astype(np.float64)
    np.testing.assert_allclose(sar.mean, train.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(sar.percentiles[95], np.percentile(train, 95, axis=1), rtol=1e-12)


def test_sicd_ready_to_train(tmp_path: Path) -> None:
    """Charts of test scenes lie in a file of their own; there is no validation split."""
    for i in range(5):
        netcdf(tmp_path / "s" / "train" / f"2018010{i}T1_dmi_prep.nc", *ice((70, 90)))
    bands, chart = ice((150, 70))
    netcdf(tmp_path / "s" / "test" / "20200101T1_cis_prep.nc", bands, None)
    netcdf(tmp_path / "s" / "test" / "20200101T1_cis_prep_reference.nc", bands, chart)
    spec = fitted(load_dataset("sicd"), 64)
    store = made(spec, tmp_path / "s", tmp_path)
    assert store.info.edition == "ready_to_train"
    assert len({r.image for r in store.records("val")}) == 1
    assert len({r.image for r in store.records("train")}) == 4
    check_ice(store, "test", bands, chart)

    (tmp_path / "s" / "test" / "20200101T1_cis_prep_reference.nc").unlink()
    with pytest.raises(DataError, match="20200101T1_cis_prep.nc: no variable SOD"):
        convert(spec, tmp_path / "s", tmp_path / "b.zarr")
    (tmp_path / "s" / "test" / "20200101T1_cis_prep.nc").write_bytes(b"CDF")
    with pytest.raises(DataError, match="cannot be read as netCDF-4"):
        convert(spec, tmp_path / "s", tmp_path / "b.zarr")


@pytest.mark.parametrize(
    ("name", "dtype", "folders"),
    [
        ("gsdd", np.float32, ("image", "mask")),
        ("gld", np.uint16, ("image", "mask")),
        ("glid", np.uint8, ("images", "masks")),
    ],
)
def test_the_other_three(tmp_path: Path, name: str, dtype: type, folders: tuple[str, str]) -> None:
    spec = load_dataset(name)
    for split in ("train", "val", "test"):
        image = RNG.random((len(spec.channels), 32, 32)) * (1 if dtype is np.float32 else 200)
        image = image.astype(dtype)
        if dtype is np.float32:
            image[3, 0, 0] = np.nan
        save(tmp_path / name / split / folders[0] / "a.tif", image)
        mask = RNG.integers(0, 2, (32, 32)).astype(np.int16)
        mask[1, 1] = -1
        mask_name = "label_a.tif" if name == "glid" else "a.tif"  # glid is paired by order
        save(tmp_path / name / split / folders[1] / mask_name, mask)
    store = made(spec, tmp_path / name, tmp_path)
    assert store.tile("test", "mask", 0)[1, 1] == 255
    assert store.tile("test", "optical", 0).dtype == dtype
    if dtype is np.float32:
        assert store.tile("test", "optical", 0)[3, 0, 0] == 0
        assert store.info.groups["optical"].statistics.missing[3] == 1 / 1024


def test_topography_is_called_what_it_is() -> None:
    assert load_dataset("gld").groups["ancillary"][:3] == ("thermal", "slope", "elevation")
    assert load_dataset("gld").groups["sar"] == ("coherence",)
    assert load_dataset("gsdd").groups["ancillary"][:3] == ("slope", "elevation", "velocity")


@pytest.mark.parametrize("overlap", [0, 16])
def test_a_grid_covers_every_pixel(overlap: int) -> None:
    grid = GridSpec(side=64, overlap=overlap)
    for length in (1, 63, 64, 65, 100, 127, 128, 129, 200, 1000):
        offsets = grid_offsets(length, grid)
        covered = np.zeros(max(length, 64), int)
        for offset in offsets:
            covered[offset : offset + 64] += 1
        assert (covered[:length] > 0).all()
        assert offsets[-1] == max(0, length - 64)
        steps = np.diff(offsets)
        assert (steps > 0).all()
        assert (steps <= 64 - overlap).all()
    with pytest.raises(ValueError, match="smaller than side"):
        GridSpec(side=64, overlap=64)


def test_what_is_no_edition_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no edition of 'caffe' that is known. tiled: .*sar_images/train"):
        survey(load_dataset("caffe"), tmp_path)


def test_a_folder_around_the_data_is_found(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        caffe_file(tmp_path / "down" / "data" / "caffe", split, "Crane", f"__{split}", (64, 64))
    assert source_of(load_dataset("caffe"), tmp_path / "down") == tmp_path / "down" / "data" / "caffe"
