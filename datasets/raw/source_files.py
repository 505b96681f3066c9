"""Files of a raw folder that may be opened: regular ones, inside that folder, of a size that a machine can hold."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

from cryobench.conf.errors import DataError

#: Pixels of a tile that is read whole, and of a scene from which tiles are cut.
MAX_TILE_PIXELS, MAX_SCENE_PIXELS = 2 * 10**8, 4 * 10**9


def require_plain(files: Iterable[Path], source: Path) -> None:
    """Check files before any is opened.

    Raises:
        DataError: one that is no regular file (a pipe would be waited for without end), a link to nothing, or one that
            leads out of ``source``.
    """
    root = source.resolve()
    for path in files:
        try:
            kind = path.stat().st_mode
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}). Is it a link to nothing?") from error
        if not stat.S_ISREG(kind):
            raise DataError(f"{path} is no regular file. Expected images and masks; remove it.")
        if not path.resolve().is_relative_to(root):
            raise DataError(
                f"{path} is a link to {path.resolve()}, outside of {source}. Give the folder in which the files are, "
                "or copy them: nothing outside of it is read."
            )


def require_size(path: Path, height: int, width: int, *, whole: bool) -> None:
    """Check the size that a file says it has, before its pixels are read; ``whole`` if all of them will be at once.

    Raises:
        DataError: more pixels than a tile, or a scene, may have.
    """
    limit = MAX_TILE_PIXELS if whole else MAX_SCENE_PIXELS
    if height * width > limit:
        what = "tile; scenes are cut into tiles by grid in the data set's YAML" if whole else "scene; cut it into parts"
        raise DataError(f"{path}: {width:,} x {height:,} pixels, expected at most {limit:,} in a {what}.")
