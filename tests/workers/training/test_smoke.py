"""The first step of a trial, tried out."""

import json
from pathlib import Path
from typing import Any

import pytest

from cryobench.conf.errors import ConfigError
from cryobench.workers.place import Place
from cryobench.workers.training.smoke import smoke_test


def test_a_step_and_a_tile_are_run_and_nothing_is_kept(one_trial: Any, place: Place, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = smoke_test(one_trial("protocol.batch_size=4"), place, scratch)
    assert found.loss > 0
    assert found.step_s > 0
    assert found.peak_memory_mb > 10
    assert found.device.startswith("cpu")
    assert not place.storage.exists()
    assert list(scratch.iterdir()) == []
    json.dumps(found.plain())


def test_what_a_trial_would_fail_with_is_raised(one_trial: Any, place: Place, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fewer than one batch"):
        smoke_test(one_trial("protocol.batch_size=64"), place, tmp_path)
