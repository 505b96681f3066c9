"""One whole store takes the place of another, whenever the process may be killed.

The old store is renamed aside, the new one in, and only then the old one is removed. What a killed process left
is put in order by `settle`, which every conversion begins with: under the store's name there is a whole store or none.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def replace_store(staging: Path, target: Path) -> None:
    """Let the whole store ``staging`` take the name ``target``; a store of that name is removed afterwards."""
    settle(target)
    if target.exists():
        target.rename(_aside(target))
    staging.rename(target)
    settle(target)


def settle(target: Path) -> None:
    """Finish or undo a replacement that was interrupted. The caller holds the store's lock."""
    aside, doomed = _aside(target), target.with_name(target.name + ".removing")
    if doomed.exists():
        shutil.rmtree(doomed)
    if not aside.exists():
        return
    if target.exists():
        # Renamed once more: what is still called aside is whole, and may be brought back.
        aside.rename(doomed)
        shutil.rmtree(doomed)
    else:
        aside.rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(target.name + ".replaced")
