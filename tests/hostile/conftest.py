"""A storage with trials in every state, to be damaged; and a terminal."""

import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from hostile import Terminal

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format_2.tar.gz"


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Seven trials of two sweeps: completed, diverged, failed, begun."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "storage"
