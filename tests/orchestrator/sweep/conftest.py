"""One Ray for the tests of a file, and one undisturbed sweep to compare with."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sweeping import SMALL, Command


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """A Ray of two cores in this process; starting one for every sweep took most of the tests' time."""
    import ray

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024 * 1024
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, shared_ray: None) -> Command:
    """A whole sweep of four trials."""
    command = Command(tmp_path_factory.mktemp("undisturbed") / "storage", data_dir, SMALL)
    assert "4 completed" in command.run_here()
    return command
