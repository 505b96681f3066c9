"""A node on which the storage is another folder must not write into it."""

from pathlib import Path

import pytest

from cryobench.conf.errors import MissingMountError
from cryobench.workers.record.storage_mark import mark_storage, require_storage


def test_a_storage_keeps_its_mark_and_another_folder_is_refused(tmp_path: Path) -> None:
    storage, other = tmp_path / "storage", tmp_path / "other"
    for folder in (storage, other):
        folder.mkdir()
    mark = mark_storage(storage)
    assert mark_storage(storage) == mark
    require_storage(storage, mark, "gpu-7")
    with pytest.raises(MissingMountError, match=r"On node gpu-7 the storage .*other is not there\. Mount"):
        require_storage(other, mark, "gpu-7", patience_s=0)
    assert mark_storage(other) != mark
    with pytest.raises(MissingMountError, match="is another folder than the driver's"):
        require_storage(other, mark, "gpu-7", patience_s=0)
    assert sorted(path.name for path in other.iterdir()) == ["storage.json"]
