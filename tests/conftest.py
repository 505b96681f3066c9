"""Small real parts shared by the tests: generated raw files, a tile store, planned trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryobench.conf.compose import load_dataset, load_sweep
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.synth.generate import fitted, generate
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.workers.place import Place

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

#: Overrides that make one trial of a second or two.
TINY = (
    "sweep=demo",
    "encoder=unet_small",
    "dataset=glid",
    "regime=finetune",
    "lr=1e-3",
    "lr_search=null",
    "protocol.epochs=3",
    "protocol.eval_every=1",
    "protocol.crops_per_tile=1",
    "protocol.bootstrap_samples=100",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole sweeps first: files are handed to processes in this order, and the longest should not be the last.

    Slow ones are alone: each takes both cores, or says how long something takes.
    """
    items.sort(key=lambda item: "sweep" not in item.path.parts)
    for item in items:
        if "sweep" in item.path.parts and item.get_closest_marker("slow"):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def raw_glid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files of generated lakes, 64 px."""
    folder = tmp_path_factory.mktemp("raw") / "glid"
    generate("glid", folder, tiles=(8, 2, 3), size=64)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory, raw_glid: Path) -> Path:
    """Stores of generated lakes and fronts, 64 px. Read only."""
    folder = tmp_path_factory.mktemp("data")
    convert(load_dataset("glid"), raw_glid, folder / "glid.zarr")
    generate("caffe", folder / "raw-caffe", tiles=(8, 2, 3), size=64)
    convert(fitted(load_dataset("caffe"), 64), folder / "raw-caffe", folder / "caffe.zarr")
    return folder


@pytest.fixture(scope="session")
def glid_store(data_dir: Path) -> TileStore:
    """The store of generated lakes. Read only."""
    return TileStore(data_dir / "glid.zarr")


@pytest.fixture
def where(tmp_path: Path, data_dir: Path) -> Places:
    """An empty storage beside the shared stores."""
    return Places(tmp_path / "storage", data_dir, tmp_path / "cache", tmp_path / "weights")


@pytest.fixture
def place(where: Places) -> Place:
    """The same for a single trial."""
    return Place(where.storage, where.data_dir, where.cache_dir, where.weights_dir, device="cpu")


@pytest.fixture
def one_trial(where: Places) -> Callable[..., TrialSpec]:
    """A function from extra overrides to the one trial that they and `TINY` give."""

    def build(*overrides: str) -> TrialSpec:
        trials = make_plan(load_sweep([*TINY, *overrides]), where).trials
        assert len(trials) == 1
        return trials[0].spec

    return build


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real satellite data that lies beside the checkout, not in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real sample tiles (shared/data beside the checkout) are not here")
    return SHARED_DATA


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A URL on a local S3 server, in a bucket of its own."""
    import boto3
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="bench")
        yield f"s3://bench/cryobench?scheme=http&region=us-east-1&endpoint_override={host}:{port}"
        server.stop()
