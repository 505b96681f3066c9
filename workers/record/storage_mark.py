"""Telling that a folder is the storage one means: a node without the mount would write into an empty one."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from cryobench.conf.errors import MissingMountError, RecordError
from cryobench.workers.record.files import read_record, write_json

MARK, MARK_FORMAT = "storage.json", 1
#: A shared file system may show a new file late.
_PATIENCE_S = 15.0


def mark_storage(storage: Path) -> str:
    """The id of a storage, which is given one if it has none yet."""
    found = _read(storage)
    if found is None:
        write_json(storage / MARK, {"format": MARK_FORMAT, "id": secrets.token_hex(8)})
        found = _read(storage)
    return found or ""


def require_storage(storage: Path, mark: str, node: str, patience_s: float = _PATIENCE_S) -> None:
    """Check that ``storage`` is, on this node, the one with the id ``mark``.

    Raises:
        MissingMountError: it is another folder, or none.
    """
    deadline = time.monotonic() + patience_s
    while (found := _read(storage)) != mark:
        if time.monotonic() > deadline:
            what = "is not there" if found is None else "is another folder than the driver's"
            raise MissingMountError(
                f"On node {node} the storage {storage} {what}. Mount the shared folder there, or give a --storage that "
                "all nodes share."
            )
        time.sleep(0.5)


def _read(storage: Path) -> str | None:
    try:
        return str(read_record(storage / MARK, MARK_FORMAT, {})["id"])
    except (FileNotFoundError, RecordError, KeyError):
        return None
