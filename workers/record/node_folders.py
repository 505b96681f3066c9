"""Folders that each node has for itself."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from cryobench.conf.errors import ConfigError


def node_cache_dir(named: str | None = None) -> Path:
    """The node's cache where no folder is named on the command line.

    It is what CRYOBENCH_CACHE says on this node, else ``named`` (``resources.cache_dir``), else a folder of the user's
    own below the system's temporary one; never below data or storage, which nodes may share.

    Raises:
        ConfigError: the folder below the temporary one belongs to somebody else.
    """
    chosen = os.environ.get("CRYOBENCH_CACHE") or named
    if chosen:
        return Path(chosen).expanduser().resolve()
    try:
        return own_temporary_folder()
    except ConfigError as error:
        raise ConfigError(
            f"{error} Name another folder for the node cache with --cache-dir, CRYOBENCH_CACHE or resources.cache_dir."
        ) from error


def own_temporary_folder(suffix: str = "") -> Path:
    """A folder of this user's alone below the system's temporary one, which is made.

    Raises:
        ConfigError: it belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()).resolve() / f"cryobench-{os.getuid()}{suffix}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ConfigError(f"The temporary folder {folder} belongs to another user, or is a link.")
    return folder


def working_copy(cache_dir: Path, url: str, whose: str) -> Path:
    """Where a node keeps its copy of an object store's trials: the ``driver``'s, or its ``worker``s'."""
    return cache_dir / "storages" / hashlib.sha256(url.encode()).hexdigest()[:12] / whose
