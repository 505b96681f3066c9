"""The digest of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces; raises what opening it raises."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
