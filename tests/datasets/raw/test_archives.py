"""Downloaded archives: unpacked whole, once, and never outside their folder."""

import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from cryobench.conf.compose import load_dataset
from cryobench.conf.errors import DataError, DiskFullError, MissingDataError
from cryobench.datasets.raw import archives
from cryobench.datasets.raw.archives import archives_at, raw_folder, unpack
from cryobench.datasets.store.convert import convert


def pack(raw: Path, path: Path) -> Path:
    """The files below ``raw``, under a folder of their own, as zip or tar."""
    files = [p for p in sorted(raw.rglob("*")) if p.is_file()]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in files:
                packed.write(file, f"glid/{file.relative_to(raw)}")
    else:
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as packed_tar:
            for file in files:
                packed_tar.add(file, f"glid/{file.relative_to(raw)}")
    return path


@pytest.mark.parametrize("name", ["glid.zip", "glid.tar", "glid.tar.gz"])
def test_an_archive_converts_like_its_folder(raw_glid: Path, tmp_path: Path, name: str) -> None:
    spec = load_dataset("glid")
    source = raw_folder(spec, pack(raw_glid, tmp_path / name), tmp_path / "unpacked")
    digest = convert(spec, source, tmp_path / "a.zarr").digest
    assert digest == convert(spec, raw_glid, tmp_path / "b.zarr").digest


def test_an_archive_in_parts_is_read_as_one(raw_glid: Path, tmp_path: Path) -> None:
    whole = pack(raw_glid, tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "down").mkdir()
    for i, part in enumerate((whole[:1000], whole[1000:5000], whole[5000:])):
        (tmp_path / "down" / f"train.tar.gza{'abc'[i]}").write_bytes(part)
    (archive,) = archives_at(tmp_path / "down")
    assert (archive.name, len(archive.parts), archive.size) == ("train.tar.gz", 3, len(whole))
    assert archives_at(tmp_path / "down" / "train.tar.gzab") == [archive]
    seen: list[tuple[int, int]] = []
    source = raw_folder(load_dataset("glid"), tmp_path / "down", tmp_path / "un", lambda *told: seen.append(told))
    assert len(list(source.rglob("*.tif"))) == 26
    assert seen[-1][1] == len(whole)


def test_an_interrupted_unpacking_goes_on(raw_glid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (archive,) = archives_at(pack(raw_glid, tmp_path / "glid.zip"))
    written: list[str] = []
    real = archives._write

    def killed(read: object, path: Path, *rest: object) -> None:
        if len(written) == 5:
            path.with_name(f".{path.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        real(read, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(archives, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out")
    monkeypatch.setattr(archives, "_write", real)
    begun = tmp_path / ".out.glid.zip.partial"
    before = {p.relative_to(begun): p.stat().st_mtime_ns for p in begun.rglob("[!.]*.*")}
    assert len(before) == 5
    assert not (tmp_path / "out").exists()
    unpack(archive, tmp_path / "out")
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in before.items())
    assert not list(tmp_path.rglob("*.part*"))
    monkeypatch.setattr(archives, "_write", None)
    unpack(archive, tmp_path / "out")  # whole: not even looked into


def evil_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname = kind, 4 if kind == tarfile.REGTYPE else 0, "/etc/passwd"
    with tarfile.open(path, "w") as packed:
        packed.addfile(entry, io.BytesIO(b"evil"))
    return path


def evil_zip(path: Path, name: str, mode: int = stat.S_IFREG) -> Path:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (mode | 0o644) << 16
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(entry, b"evil")
    return path


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/tmp/escaped", "a\\..\\escaped", "C:/escaped"])
@pytest.mark.parametrize("make", [evil_tar, evil_zip])
def test_no_member_leaves_the_folder(tmp_path: Path, name: str, make: type) -> None:
    path = make(tmp_path / ("x.tar" if make is evil_tar else "x.zip"), name)
    with pytest.raises(DataError, match="a path that leads out of the folder"):
        unpack(*archives_at(path), tmp_path / "in" / "out")
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != path]


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for i, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)):
        with pytest.raises(DataError, match="a link or device"):
            unpack(*archives_at(evil_tar(tmp_path / f"{i}.tar", "x", kind)), tmp_path / "out")
    with pytest.raises(DataError, match="a link or device"):
        unpack(*archives_at(evil_zip(tmp_path / "l.zip", "x", stat.S_IFLNK)), tmp_path / "out")


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(*archives_at(evil_tar(tmp_path / "x.tar", "a/file")), tmp_path / "out")


def test_sizes_are_limited(raw_glid: Path, tmp_path: Path) -> None:
    (archive,) = archives_at(pack(raw_glid, tmp_path / "glid.zip"))
    with pytest.raises(DataError, match="unpacks to more than 20,000 bytes"):
        unpack(archive, tmp_path / "a", max_bytes=20_000)
    with pytest.raises(DataError, match="or 3 files"):
        unpack(archive, tmp_path / "b", max_members=3)


def test_a_checksum_behind_the_last_member_is_read(raw_glid: Path, tmp_path: Path) -> None:
    """One bit of the content, where the packing itself does not notice it."""
    with tarfile.open(tmp_path / "glid.tar.gz", "w:gz", compresslevel=0) as packed:
        packed.add(raw_glid, "glid")
    content = bytearray((tmp_path / "glid.tar.gz").read_bytes())
    content[content.index(b"II*\x00") + 2000] ^= 1
    (tmp_path / "glid.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged or not whole \(CRC check failed.*nothing of it was written"):
        unpack(*archives_at(tmp_path / "glid.tar.gz"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["glid.tar.gz"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_a_refused_archive_nothing_is_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("good.tif", b"good")
            packed.writestr("../bad.tif", b"bad")
    else:
        with tarfile.open(path, "w") as packed_tar:
            for name in ("good.tif", "../bad.tif"):
                entry = tarfile.TarInfo(name)
                entry.size = 4
                packed_tar.addfile(entry, io.BytesIO(b"what"))
    with pytest.raises(DataError, match="nothing of it was written"):
        unpack(*archives_at(path), tmp_path / "out")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, name: str) -> None:
    zeros = bytes(64 << 20)
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("zeros.tif", zeros)
    else:
        entry = tarfile.TarInfo("zeros.tif")
        entry.size = len(zeros)
        with tarfile.open(tmp_path / name, "w:gz") as packed_tar:
            packed_tar.addfile(entry, io.BytesIO(zeros))
    with pytest.raises(DataError, match=r"unpacks to more than 200 times its [\d,]+ bytes \(at member zeros.tif\)"):
        unpack(*archives_at(tmp_path / name), tmp_path / "out")
    assert [found.name for found in tmp_path.iterdir()] == [name]


def test_more_than_the_disk_has_left_is_refused(
    raw_glid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archive,) = archives_at(pack(raw_glid, tmp_path / "glid.zip"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"more than the 1,\d{3} bytes that are free"):
        unpack(archive, tmp_path / "out")


def test_a_password_or_an_unknown_method_is_explained(tmp_path: Path) -> None:
    path = evil_zip(tmp_path / "x.zip", "a.tif")
    content = path.read_bytes()
    central = content.index(b"PK\x01\x02")
    locked, unknown = bytearray(content), bytearray(content)
    locked[6] |= 1
    locked[central + 8] |= 1
    unknown[8:10] = unknown[central + 10 : central + 12] = (99).to_bytes(2, "little")
    for changed in (locked, unknown):
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"cannot be unpacked here \(.*Unpack it by hand"):
            unpack(*archives_at(path), tmp_path / "out")


def test_a_truncated_archive_is_explained(raw_glid: Path, tmp_path: Path) -> None:
    for name in ("glid.zip", "glid.tar.gz"):
        path = pack(raw_glid, tmp_path / name)
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(DataError, match=f"{name} is damaged or not whole"):
            unpack(*archives_at(path), tmp_path / name.replace(".", "_"))


def test_a_full_disk_is_explained(raw_glid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "_write", full)
    with pytest.raises(DiskFullError):
        unpack(*archives_at(pack(raw_glid, tmp_path / "glid.zip")), tmp_path / "out")


def test_what_is_no_archive_is_explained(tmp_path: Path) -> None:
    spec = load_dataset("glid")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        raw_folder(spec, tmp_path / "notes.txt", tmp_path / "out")
    with pytest.raises(MissingDataError, match=r"no images of 'glid' for split 'train'"):
        raw_folder(spec, tmp_path, tmp_path / "out")
    with pytest.raises(MissingDataError, match="cryobench data fetch glid"):
        raw_folder(spec, tmp_path / "none", tmp_path / "out")
