import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from cryobench.conf.compose import load_dataset
from cryobench.conf.dataset_spec import ChannelSpec, DatasetSpec, LayoutSpec
from cryobench.conf.errors import DataError, MissingDataError, NotBuiltError
from cryobench.datasets.raw.paired import read, scan
from cryobench.datasets.raw.reader import TileFiles, reader_for

SPEC = DatasetSpec(
    name="mine",
    title="Mine",
    reader="paired",
    channels=(
        ChannelSpec(name="B4", group="optical"),
        ChannelSpec(name="VV", group="sar"),
        ChannelSpec(name="slope", group="ancillary"),
    ),
    classes=("rock", "ice"),
    mask_codes={0: 0, 7: 1},
    mask_ignore=9,
)


def write(path: Path, values: NDArray[np.generic], **profile: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    settings = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype} | profile
    with rasterio.open(path, "w", **settings) as raster:
        raster.write(values)
    return path


@pytest.fixture
def files(tmp_path: Path) -> TileFiles:
    image = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    mask = np.zeros((1, 4, 5), np.uint8)
    mask[0, 0, :2], mask[0, 1, 1] = 7, 9
    return TileFiles("train", write(tmp_path / "i.tif", image), write(tmp_path / "m.tif", mask))


def test_channels_go_to_their_groups_and_labels_to_classes(files: TileFiles) -> None:
    tile = read(SPEC, files)
    assert {name: values.shape for name, values in tile.groups.items()} == {
        "optical": (1, 4, 5),
        "sar": (1, 4, 5),
        "ancillary": (1, 4, 5),
    }
    assert tile.groups["sar"][0, 0, 0] == 20
    assert tile.groups["sar"].dtype == np.uint16
    assert tile.mask[0].tolist() == [1, 1, 0, 0, 0]
    assert tile.mask[1, 1] == 255


def test_georeference_is_kept(tmp_path: Path) -> None:
    transform = rasterio.transform.from_origin(500_000, 4_000_000, 10, 10)
    path = write(tmp_path / "i.tif", np.zeros((3, 4, 4), np.uint8), crs="EPSG:32645", transform=transform)
    tile = read(SPEC, TileFiles("train", path, write(tmp_path / "m.tif", np.zeros((1, 4, 4), np.uint8))))
    assert tile.crs == "EPSG:32645"
    assert tile.transform == (10, 0, 500_000, 0, -10, 4_000_000)


def test_a_wrong_band_count_is_explained(files: TileFiles, tmp_path: Path) -> None:
    other = write(tmp_path / "two.tif", np.zeros((2, 4, 5), np.uint16))
    with pytest.raises(DataError, match=r"two.tif: 2 bands, expected 3 \(B4 VV slope\)"):
        read(SPEC, TileFiles("train", other, files.mask))


def test_an_unknown_label_names_file_value_and_count(files: TileFiles, tmp_path: Path) -> None:
    mask = np.zeros((1, 4, 5), np.uint8)
    mask[0, 2, :3] = 3
    other = write(tmp_path / "odd.tif", mask)
    with pytest.raises(DataError, match=r"odd.tif: label values outside the coding: 3 \(3 pixels\). Expected \[0, 7\]"):
        read(SPEC, TileFiles("train", files.image, other))


def test_sizes_must_agree(files: TileFiles, tmp_path: Path) -> None:
    other = write(tmp_path / "small.tif", np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(DataError, match="small.tif: 4 x 4 pixels, but its image i.tif has 5 x 4"):
        read(SPEC, TileFiles("train", files.image, other))


def test_a_corrupt_file_is_explained(files: TileFiles) -> None:
    files.image.write_bytes(files.image.read_bytes()[:100])
    with pytest.raises(DataError, match=r"i.tif: cannot be read as an image .* fetch it again"):
        read(SPEC, files)


def test_nan_is_an_error_unless_a_fill_is_named(files: TileFiles, tmp_path: Path) -> None:
    values = np.ones((3, 4, 5), np.float32)
    values[1, 2, 3] = np.nan
    some = TileFiles("train", write(tmp_path / "nan.tif", values), files.mask)
    with pytest.raises(DataError, match="nan.tif: 1 values are NaN or infinite. Set nan_fill"):
        read(SPEC, some)
    filled = read(SPEC.model_copy(update={"nan_fill": 0.0}), some)
    assert filled.groups["sar"][0, 2, 3] == 0


@pytest.mark.parametrize(
    ("images", "masks"),
    [("{s}/images", "{s}/masks"), ("{s}/image", "{s}/mask"), ("images/{s}", "labels/{s}")],
)
def test_all_published_folder_forms_are_found(tmp_path: Path, images: str, masks: str) -> None:
    for split in ("train", "val", "test"):
        for name in ("b", "a"):
            write(tmp_path / images.format(s=split) / f"{name}.png", np.zeros((3, 4, 4), np.uint8), driver="PNG")
            write(tmp_path / masks.format(s=split) / f"{name}.png", np.zeros((1, 4, 4), np.uint8), driver="PNG")
    found = scan(SPEC, tmp_path)
    assert [(f.split, f.image.stem, f.mask.stem) for f in found] == [
        (split, name, name) for split in ("train", "val", "test") for name in ("a", "b")
    ]


def test_pairing_by_order_takes_other_names(raw_glid: Path, tmp_path: Path) -> None:
    folder = tmp_path / "glid"
    shutil.copytree(raw_glid, folder)
    for path in list(folder.glob("*/masks/*.tif")):
        path.rename(path.with_name(f"mask_{path.name}"))
    spec = load_dataset("glid")
    assert all(f.mask.stem == f"mask_{f.image.stem}" for f in scan(spec, folder))
    with pytest.raises(DataError, match="without a mask of the same name"):
        scan(spec.model_copy(update={"layout": LayoutSpec(pairing="name")}), folder)


def test_missing_files_are_explained(raw_glid: Path, tmp_path: Path) -> None:
    spec = load_dataset("glid")
    with pytest.raises(MissingDataError, match=r"No folder .*nowhere .*train/images"):
        scan(spec, tmp_path / "nowhere")
    folder = tmp_path / "glid"
    shutil.copytree(raw_glid, folder)
    (folder / "val" / "masks" / "0000.tif").unlink()
    with pytest.raises(DataError, match=r"split 'val' has 2 images and 1 masks.* 0000"):
        scan(spec, folder)
    shutil.rmtree(folder / "test")
    (folder / "val" / "images" / "0000.tif").unlink()
    with pytest.raises(MissingDataError, match="no images of 'glid' for split 'test'"):
        scan(spec, folder)


def test_a_reader_of_a_later_release_refuses() -> None:
    with pytest.raises(NotBuiltError, match="Data set 'mine' needs the reader 'cubes', which is not part"):
        reader_for(SPEC.model_copy(update={"reader": "cubes"}))
