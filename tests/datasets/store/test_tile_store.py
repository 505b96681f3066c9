import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio

from cryobench.conf.compose import load_dataset
from cryobench.conf.digests import file_sha256
from cryobench.conf.errors import CorruptDataError, DataError, MissingDataError
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.store_info import description_digest, read_info, staging_path, tile_check, tile_digest
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.store.verify import verify
from cryobench.datasets.synth.generate import generate

GLID = load_dataset("glid")


def interrupted_after(count: int):  # type: ignore[no-untyped-def]
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


def test_a_store_holds_what_the_files_hold(raw_glid: Path, glid_store: TileStore) -> None:
    for split in ("train", "val", "test"):
        for i, record in enumerate(glid_store.records(split)):
            with rasterio.open(raw_glid / record.image) as image, rasterio.open(raw_glid / record.mask) as mask:
                assert np.array_equal(glid_store.tile(split, "optical", i), image.read())
                assert np.array_equal(glid_store.tile(split, "mask", i), mask.read(1))
                assert record.crs == "EPSG:32645"
                assert record.transform == tuple(image.transform)[:6]


def test_a_store_is_zarr_v3_with_one_chunk_a_tile(glid_store: TileStore) -> None:
    import zarr

    root = zarr.open_group(str(glid_store.path), mode="r")
    array = root["train/optical"]
    assert array.metadata.zarr_format == 3
    assert array.chunks == (1, 3, 64, 64)
    assert array.shards is None
    assert array.attrs["bands"] == ["B4", "B3", "B2"]


def test_statistics_equal_numpys_over_the_whole_training_split(glid_store: TileStore) -> None:
    whole = np.concatenate([glid_store.tile("train", "optical", i)[:, None] for i in range(8)], axis=1)
    flat = whole.reshape(3, -1).astype(np.float64)
    stats = glid_store.info.groups["optical"].statistics
    np.testing.assert_allclose(stats.mean, flat.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(stats.std, flat.std(axis=1), rtol=1e-12)
    assert stats.min == tuple(flat.min(axis=1))
    assert stats.max == tuple(flat.max(axis=1))


def test_class_pixels_are_counted_a_tile(glid_store: TileStore) -> None:
    counts = glid_store.class_pixels("train")
    for i in range(8):
        mask = glid_store.tile("train", "mask", i)
        assert counts[i].tolist() == [(mask == c).sum() for c in range(2)]
    total = glid_store.info.splits["train"].class_pixels
    assert total[:2] == tuple(counts.sum(axis=0))


@pytest.mark.parametrize("after", [1, 5, 12])
def test_an_interrupted_conversion_continues_and_ends_the_same(
    raw_glid: Path, glid_store: TileStore, tmp_path: Path, after: int
) -> None:
    target = tmp_path / "glid.zarr"
    with pytest.raises(KeyboardInterrupt):
        convert(GLID, raw_glid, target, progress=interrupted_after(after))
    assert not target.exists()
    with pytest.raises(MissingDataError, match="only an unfinished conversion"):
        read_info(target)
    seen: list[int] = []
    convert(GLID, raw_glid, target, progress=lambda done, total: seen.append(done))
    assert seen[0] > after  # what was done is not done again
    assert read_info(target).digest == glid_store.info.digest
    assert read_info(target).groups == glid_store.info.groups
    assert not staging_path(target).exists()
    assert verify(TileStore(target)) == []


def test_a_torn_journal_line_costs_one_tile(raw_glid: Path, glid_store: TileStore, tmp_path: Path) -> None:
    target = tmp_path / "glid.zarr"
    with pytest.raises(KeyboardInterrupt):
        convert(GLID, raw_glid, target, progress=interrupted_after(4))
    journal = staging_path(target) / "conversion.jsonl"
    journal.write_text(journal.read_text()[:-20])
    assert convert(GLID, raw_glid, target).digest == glid_store.info.digest


def test_an_unfinished_conversion_of_other_files_starts_anew(raw_glid: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "glid.zarr", tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        convert(GLID, raw_glid, target, progress=interrupted_after(4))
    generate("glid", other, tiles=(3, 1, 1), size=64, seed=9)
    assert convert(GLID, other, target).splits["train"].tiles == 3
    assert verify(TileStore(target)) == []


def test_converting_the_same_files_again_changes_nothing(raw_glid: Path, tmp_path: Path) -> None:
    target = tmp_path / "glid.zarr"
    convert(GLID, raw_glid, target)
    before = (target / "zarr.json").stat().st_mtime_ns
    convert(GLID, raw_glid, target)
    assert (target / "zarr.json").stat().st_mtime_ns == before


def test_other_files_replace_a_store_only_by_force(raw_glid: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "glid.zarr", tmp_path / "other"
    convert(GLID, raw_glid, target)
    generate("glid", other, tiles=(3, 1, 1), size=64, seed=9)
    with pytest.raises(DataError, match="Add --force to replace it"):
        convert(GLID, other, target)
    assert convert(GLID, other, target, force=True).splits["train"].tiles == 3


def test_the_digest_is_of_the_content_alone(raw_glid: Path, glid_store: TileStore, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(raw_glid, moved)
    assert convert(GLID, moved, tmp_path / "a.zarr", threads=1).digest == glid_store.info.digest
    path = moved / "train" / "images" / "0003.tif"
    with rasterio.open(path, "r+") as raster:
        values = raster.read()
        values[0, 0, 0] ^= 1
        raster.write(values)
    assert convert(GLID, moved, tmp_path / "b.zarr").digest != glid_store.info.digest


def test_tiles_of_other_size_or_dtype_are_refused(raw_glid: Path, tmp_path: Path) -> None:
    folder = tmp_path / "glid"
    shutil.copytree(raw_glid, folder)
    path = folder / "train" / "images" / "0002.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 64, "width": 64}
    with rasterio.open(path, "w", dtype="uint16", **profile) as raster:
        raster.write(np.zeros((3, 64, 64), np.uint16))
    with pytest.raises(DataError, match=r"0002.tif: dtype uint16, the first training tile has uint8"):
        convert(GLID, folder, tmp_path / "a.zarr")
    for where in ("images", "masks"):
        count = 3 if where == "images" else 1
        with rasterio.open(
            folder / "train" / where / "0002.tif", "w", dtype="uint8", driver="GTiff", count=count, height=32, width=64
        ) as raster:
            raster.write(np.zeros((count, 32, 64), np.uint8))
    with pytest.raises(DataError, match=r"0002.tif: 64 x 32 pixels, the first tile of split 'train' has 64 x 64"):
        convert(GLID, folder, tmp_path / "b.zarr")


def test_a_generated_store_says_so(glid_store: TileStore) -> None:
    assert glid_store.info.origin == "generated (seed 234, 64 px)"


def damaged(store: TileStore, folder: Path) -> TileStore:
    shutil.copytree(store.path, folder / "glid.zarr")
    return TileStore(folder / "glid.zarr")


def test_verify_finds_a_flipped_bit(glid_store: TileStore, tmp_path: Path) -> None:
    store = damaged(glid_store, tmp_path)
    chunk = store.path / "train" / "optical" / "c" / "5" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    (problem,) = verify(store)
    assert "tile 5 of train/optical (train/images/0005.tif)" in problem


def test_verify_finds_a_missing_and_a_truncated_chunk(glid_store: TileStore, tmp_path: Path) -> None:
    store = damaged(glid_store, tmp_path)
    chunks = store.path / "val" / "mask" / "c"
    (chunks / "0" / "0" / "0").unlink()
    whole = (chunks / "1" / "0" / "0").read_bytes()
    (chunks / "1" / "0" / "0").write_bytes(whole[: len(whole) // 2])
    problems = verify(store)
    assert len(problems) == 2
    assert "tile 0 of val/mask" in problems[0]
    assert "is missing" in problems[0]
    assert "tile 1 of val/mask" in problems[1]


def test_verify_finds_swapped_tiles(glid_store: TileStore, tmp_path: Path) -> None:
    store = damaged(glid_store, tmp_path)
    chunks = store.path / "train" / "mask" / "c"
    (chunks / "0").rename(chunks / "spare")
    (chunks / "1").rename(chunks / "0")
    (chunks / "spare").rename(chunks / "1")
    assert len(verify(store)) == 2


def test_verify_finds_swapped_splits(glid_store: TileStore, tmp_path: Path) -> None:
    store = damaged(glid_store, tmp_path)
    path = Path(store.path)
    (path / "val").rename(path / "spare")
    (path / "test").rename(path / "val")
    (path / "spare").rename(path / "test")
    problems = verify(TileStore(path))
    assert len(problems) == 2 * (2 + 3)  # every image and mask of both
    assert "tile 0 of val/optical" in problems[0]


def relabelled(store: TileStore, value: int) -> TileStore:
    """The store with one pixel of a mask changed, and every digest of that mask made to fit."""
    import pyarrow.parquet as pq
    from numcodecs.zstd import Zstd

    path = Path(store.path)
    mask = store.tile("train", "mask", 3).copy()
    mask[0, 0] = value
    (path / "train" / "mask" / "c" / "3" / "0" / "0").write_bytes(Zstd(5).encode(mask))
    table = pq.read_table(path / "index.parquet")
    rows = table.to_pylist()
    for row in rows:
        if (row["split"], row["index"]) == ("train", 3):
            row["digests"] = [*dict(row["digests"], mask=tile_digest(mask)).items()]
            row["checks"] = [*dict(row["checks"], mask=tile_check(mask)).items()]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path / "index.parquet")
    index = {"index_sha256": file_sha256(path / "index.parquet")}
    return TileStore(edited(store, lambda mine: mine.update(index), knowingly=True))


def test_verify_finds_a_wrong_label(glid_store: TileStore, tmp_path: Path) -> None:
    """Even one whose digests were made to fit: by its value, by the counts, and by the digest of the whole."""
    store = damaged(glid_store, tmp_path / "a")
    beyond = verify(relabelled(store, 77))
    assert "the index does not belong to this store" in beyond[0]
    assert "tile 3 of train/mask (train/images/0003.tif) holds label values [77], expected 0 to 1 or 255" in beyond[1]
    store = damaged(glid_store, tmp_path / "b")
    other = 1 - int(store.tile("train", "mask", 3)[0, 0])
    assert "pixels a class, the index says" in verify(relabelled(store, other))[1]


def test_a_store_is_plain_zarr(glid_store: TileStore) -> None:
    """What is read chunk by chunk here is what the Zarr library reads."""
    import zarr

    root = zarr.open_group(str(glid_store.path), mode="r")
    for split, name in (("train", "optical"), ("test", "mask")):
        for i in range(glid_store.info.splits[split].tiles):
            np.testing.assert_array_equal(root[f"{split}/{name}"][i], glid_store.tile(split, name, i))


def test_verify_finds_a_foreign_index(glid_store: TileStore, tmp_path: Path) -> None:
    store = damaged(glid_store, tmp_path)
    attributes = json.loads((store.path / "zarr.json").read_text())
    mine = attributes["attributes"]["cryobench"]
    mine["digest"] = "0" * 64
    mine["described"] = description_digest(mine)
    (store.path / "zarr.json").write_text(json.dumps(attributes))
    assert any("index does not belong" in problem for problem in verify(TileStore(store.path)))


def edited(store: TileStore, change: Callable[[dict[str, Any]], object], *, knowingly: bool) -> Path:
    """The store with another description; ``knowingly`` with the digest that fits it."""
    path = Path(store.path) / "zarr.json"
    plain = json.loads(path.read_text())
    mine = plain["attributes"]["cryobench"]
    change(mine)
    if knowingly:
        mine["described"] = description_digest(mine)
    path.write_text(json.dumps(plain))
    return Path(store.path)


def ten_times_std(mine: dict[str, Any]) -> None:
    statistics = mine["groups"]["optical"]["statistics"]
    statistics["std"] = [10 * value for value in statistics["std"]]


def test_statistics_that_were_changed_are_noticed(glid_store: TileStore, tmp_path: Path) -> None:
    changed = edited(damaged(glid_store, tmp_path / "a"), ten_times_std, knowingly=False)
    with pytest.raises(CorruptDataError, match=r"zarr.json is not what was written: statistics"):
        read_info(changed)
    changed = edited(damaged(glid_store, tmp_path / "b"), ten_times_std, knowingly=True)
    (problem,) = verify(TileStore(changed))
    assert "the std of optical in the training split is [" in problem


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_statistics_that_are_no_numbers_are_refused(glid_store: TileStore, tmp_path: Path, value: float) -> None:
    def change(mine: dict[str, Any]) -> None:
        mine["groups"]["optical"]["statistics"]["std"][0] = value

    changed = edited(damaged(glid_store, tmp_path), change, knowingly=True)
    with pytest.raises(CorruptDataError, match="is not a whole tile store"):
        read_info(changed)


def test_a_store_of_the_former_format_is_read_and_verified(glid_store: TileStore, tmp_path: Path) -> None:
    def former(mine: dict[str, Any]) -> None:
        mine["format"] = 2
        del mine["described"], mine["index_sha256"]

    store = TileStore(edited(damaged(glid_store, tmp_path), former, knowingly=False))
    assert store.info.digest == glid_store.info.digest
    assert verify(store) == []
    ten = TileStore(edited(store, ten_times_std, knowingly=False))
    assert "the std of optical" in verify(ten)[0]


def test_an_index_that_was_changed_is_noticed(glid_store: TileStore, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    store = damaged(glid_store, tmp_path)
    path = Path(store.path) / "index.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none")
    with pytest.raises(CorruptDataError, match="index.parquet cannot be used .it is not the file that was written"):
        store.records("train")


@pytest.mark.parametrize("dtype", ["complex64", "int64"])
def test_dtypes_that_would_be_cast_are_refused(raw_glid: Path, tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "glid"
    shutil.copytree(raw_glid, folder)
    profile = {"driver": "GTiff", "count": 3, "height": 64, "width": 64}
    for path in (folder / "train" / "images").iterdir():
        with rasterio.open(path, "w", dtype=dtype, **profile) as raster:
            raster.write(np.ones((3, 64, 64), dtype))
    with pytest.raises(DataError, match=rf"dtype {dtype}, expected one of uint8, .*Nothing is cast"):
        convert(GLID, folder, tmp_path / "glid.zarr")


def test_one_dtype_holds_for_all_splits(raw_glid: Path, tmp_path: Path) -> None:
    folder = tmp_path / "glid"
    shutil.copytree(raw_glid, folder)
    for path in (folder / "val" / "images").iterdir():
        with rasterio.open(path, "w", dtype="int32", driver="GTiff", count=3, height=64, width=64) as raster:
            raster.write(np.ones((3, 64, 64), np.int32))
    with pytest.raises(DataError, match=r"dtype int32, the first training tile has uint8"):
        convert(GLID, folder, tmp_path / "glid.zarr")


def test_what_is_no_store_is_explained(glid_store: TileStore, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"No tile store .*glid.zarr: run: cryobench data prepare glid"):
        read_info(tmp_path / "glid.zarr")
    (tmp_path / "glid.zarr").mkdir()
    with pytest.raises(CorruptDataError, match="is not a whole tile store"):
        read_info(tmp_path / "glid.zarr")
    store = damaged(glid_store, tmp_path / "other")
    attributes = json.loads((store.path / "zarr.json").read_text())
    attributes["attributes"]["cryobench"]["format"] = 99
    (store.path / "zarr.json").write_text(json.dumps(attributes))
    with pytest.raises(CorruptDataError, match="has store format 99, this release reads 2 and 3"):
        read_info(store.path)


def test_memory_stays_flat_while_converting(tmp_path: Path) -> None:
    """Peak traced memory does not grow with the number of tiles."""
    import tracemalloc

    peaks = []
    for count in (4, 24):
        generate("glid", tmp_path / f"raw{count}", tiles=(count, 1, 1), size=128)
        tracemalloc.start()
        convert(GLID, tmp_path / f"raw{count}", tmp_path / f"{count}.zarr")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    a_tile = 3 * 128 * 128 * 8  # one tile in float64, as the statistics need it
    assert peaks[1] < peaks[0] + 4 * a_tile
