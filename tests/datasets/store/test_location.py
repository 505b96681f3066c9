"""Tile stores on an object store: a real S3 protocol, served on this machine, through the same code."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryobench.conf.errors import ConfigError, CorruptDataError, MissingDataError, StorageError
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.batches.node_cache import StoredTiles, open_tiles
from cryobench.datasets.store.location import below, locate
from cryobench.datasets.store.store_info import read_info
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.store.verify import verify
from cryobench.orchestrator.places import places
from cryobench.workers.place import Place
from cryobench.workers.trial import run_trial


@pytest.fixture(scope="module")
def remote(s3: str, glid_store: TileStore) -> str:
    """A data folder on S3 that holds the store of generated lakes."""
    from pyarrow import fs

    filesystem, root = fs.FileSystem.from_uri(below(s3, "data"))
    fs.copy_files(str(glid_store.path), f"{root}/glid.zarr", destination_filesystem=filesystem)
    return str(below(s3, "data"))


def test_a_remote_store_is_the_local_one(remote: str, glid_store: TileStore, tmp_path: Path) -> None:
    store = TileStore(below(remote, "glid.zarr"))
    assert store.info == glid_store.info
    np.testing.assert_array_equal(store.tile("test", "optical", 1), glid_store.tile("test", "optical", 1))
    assert verify(store) == []
    cached = open_tiles(store, tmp_path, 10**9)("train")
    direct = StoredTiles(glid_store, "train")
    np.testing.assert_array_equal(cached.crop("mask", 3, 5, 6, 20, 20), direct.crop("mask", 3, 5, 6, 20, 20))


def test_a_trial_on_remote_data_is_the_same(
    remote: str, place: Place, one_trial: Callable[..., TrialSpec], tmp_path: Path
) -> None:
    local = run_trial(one_trial(), place)
    elsewhere = replace(place, data_dir=remote, storage=tmp_path / "other", cache_dir=tmp_path / "cache2")
    assert run_trial(one_trial(), elsewhere).reproducible() == local.reproducible()


def test_a_plan_reads_remote_data(remote: str, tmp_path: Path) -> None:
    where = places(str(tmp_path), data_dir=remote, cache_dir=str(tmp_path / "cache"))
    assert read_info(where.store("glid")).dataset.name == "glid"
    with pytest.raises(MissingDataError, match="No tile store s3://.*caffe.zarr"):
        read_info(where.store("caffe"))
    with pytest.raises(ConfigError, match="data sets are prepared in a local folder"):
        where.own_data("glid")


def test_a_damaged_remote_chunk_is_named(remote: str) -> None:
    from pyarrow import fs

    filesystem, root = fs.FileSystem.from_uri(remote)
    fs.copy_files(f"{root}/glid.zarr", f"{root}/bad/glid.zarr", filesystem, filesystem)
    with filesystem.open_output_stream(f"{root}/bad/glid.zarr/val/mask/c/1/0/0") as stream:
        stream.write(b"nonsense")
    filesystem.delete_file(f"{root}/bad/glid.zarr/val/mask/c/0/0/0")
    store = TileStore(below(remote, "bad/glid.zarr"))
    with pytest.raises(CorruptDataError, match="tile 1 of val/mask .* cannot be decoded"):
        store.tile("val", "mask", 1)
    with pytest.raises(CorruptDataError, match="tile 0 of val/mask .* is missing"):
        store.tile("val", "mask", 0)


def test_an_unreachable_store_is_explained() -> None:
    url = "s3://nowhere/x?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:9"
    with pytest.raises(StorageError, match="zarr.json cannot be read .*Check the address"):
        read_info(below(url, "glid.zarr"))
    with pytest.raises(ConfigError, match="Expected a local folder or a URL"):
        locate("ftp://host/x")
