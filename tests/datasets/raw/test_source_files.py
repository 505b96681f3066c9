"""What lies in a raw folder and must not be opened, or not read as it asks to be."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio

from cryobench.conf.compose import load_dataset
from cryobench.conf.errors import DataError
from cryobench.datasets.raw import source_files
from cryobench.datasets.store.convert import convert
from cryobench.datasets.synth.generate import generate

GLID = load_dataset("glid")
SECRET = "first line of a file that no data set has\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    generate("glid", tmp_path / "glid", tiles=(2, 1, 1), size=64)
    return tmp_path / "glid"


def virtual_raster(path: Path, raw: Path) -> None:
    """A text file that has GDAL read another one as pixels."""
    secret = raw.parent / "secret"
    secret.write_text(SECRET)
    band = (
        '<VRTRasterBand dataType="Byte" band="{}" subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{}'
        "</SourceFilename><ImageOffset>0</ImageOffset><PixelOffset>0</PixelOffset><LineOffset>0</LineOffset>"
        "</VRTRasterBand>"
    )
    bands = "".join(band.format(i, secret) for i in (1, 2, 3))
    path.write_text(f'<VRTDataset rasterXSize="64" rasterYSize="64">{bands}</VRTDataset>')


def pipe(path: Path, raw: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_nothing(path: Path, raw: Path) -> None:
    path.unlink()
    path.symlink_to(raw / "nowhere.tif")


def link_outside(path: Path, raw: Path) -> None:
    outside = raw.parent / "outside.tif"
    path.rename(outside)
    path.symlink_to(outside)


def device(path: Path, raw: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path, raw: Path) -> None:
    path.unlink()
    path.mkdir()


def sparse(path: Path, raw: Path) -> None:
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "blockxsize": 4096, "blockysize": 4096}
    with rasterio.open(path, "w", width=300_000, height=300_000, sparse_ok=True, bigtiff="YES", **profile):
        pass


def png_header(path: Path, raw: Path) -> None:
    """A PNG that says it has 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))


@pytest.mark.parametrize("part", ["images", "masks"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (virtual_raster, "cannot be read as an image"),
        (pipe, "is no regular file"),
        (link_to_nothing, "Is it a link to nothing"),
        (link_outside, "outside of .*nothing outside of it is read"),
        (device, "is no regular file"),
        (folder, "is no regular file"),
        (sparse, "300,000 x 300,000 pixels, expected at most 200,000,000"),
        (png_header, "100,000 x 100,000 pixels, expected at most"),
    ],
)
def test_it_is_refused_and_explained(
    raw: Path, tmp_path: Path, part: str, change: Callable[[Path, Path], None], said: str
) -> None:
    path = raw / "train" / part / "0001.tif"
    change(path, raw)
    with pytest.raises(DataError, match=said):
        convert(GLID, raw, tmp_path / "glid.zarr")
    assert not (tmp_path / "glid.zarr").exists()


def test_a_folder_may_itself_be_reached_by_a_link(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(raw)
    info = convert(GLID, tmp_path / "link", tmp_path / "glid.zarr")
    assert info.splits["train"].tiles == 2


def test_scenes_have_a_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "MAX_SCENE_PIXELS", 1000)
    generate("caffe", tmp_path / "raw", tiles=(1, 1, 1), size=64)
    with pytest.raises(DataError, match="expected at most 1,000 in a scene; cut it into parts"):
        convert(load_dataset("caffe"), tmp_path / "raw", tmp_path / "caffe.zarr")
