from pathlib import Path

import pytest

from cryobench.conf.compose import load_sweep
from cryobench.conf.errors import UnknownNameError
from cryobench.orchestrator.sweep_record import all_sweeps, read_sweep, record_sweep


def test_what_else_lies_among_the_records_is_none(tmp_path: Path) -> None:
    """An object store's working copy keeps a hidden file in every folder."""
    record_sweep(tmp_path, load_sweep(["sweep=demo"]), [])
    (tmp_path / "sweeps" / ".stamps.json").write_text('{"format": 1, "files": {}}')
    problems: list[Exception] = []
    assert [record.name for record in all_sweeps(tmp_path, problems.append)] == ["demo"]
    assert not problems
    with pytest.raises(UnknownNameError) as refused:
        read_sweep(tmp_path, "damo")
    assert "stamps" not in str(refused.value)
