"""One undisturbed sweep to compare with, and the table of what each fault did."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "workers" / "record"))

from disturbing import FaultTable, Sweep


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Sweep:
    """A whole sweep on this machine alone, as nothing disturbs it."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed") / "storage", data_dir)
    process = sweep.start()
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 0, told
    return sweep


@pytest.fixture(scope="session")
def table() -> Iterator[FaultTable]:
    """What every fault did; printed at the end, and written where docs/reliability.md is made from."""
    made = FaultTable()
    yield made
    made.write(Path(__file__).parents[2] / "build" / "faults.md")
