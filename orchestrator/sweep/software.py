"""Which software a node runs: trials of one sweep are made by one release of everything that decides about numbers."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable

from cryobench.conf.errors import OtherSoftwareError

_PACKAGES = ("conf", "datasets", "encoders", "workers", "orchestrator")
_SUFFIXES = (".py", ".yaml")


@dataclass(frozen=True)
class Software:
    """Releases of one process; ``cryobench`` with a digest of its files, since a checkout changes between releases."""

    cryobench: str
    torch: str
    python: str

    @staticmethod
    @cache
    def here() -> Software:
        """That of this process."""
        code = f"{version('cryobench')} (files {_digest()})"
        return Software(code, version("torch"), platform.python_version())

    def require_here(self, node: str) -> None:
        """Check that the process on ``node`` that calls this runs the same.

        Raises:
            OtherSoftwareError: it does not; names both.
        """
        found = Software.here()
        differing = [
            f"{name} {getattr(found, name)}, the driver has {getattr(self, name)}"
            for name in ("cryobench", "torch", "python")
            if getattr(found, name) != getattr(self, name)
        ]
        if differing:
            raise OtherSoftwareError(
                f"Node {node} runs {'; and '.join(differing)}. Install the same there (pip install -c constraints.txt "
                "…) and restart its Ray; of a checkout, change no file while a sweep runs."
            )


def _digest() -> str:
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for name, content in _contents(files(f"cryobench.{package}"), package):
            digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:12]


def _contents(folder: Traversable, name: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found += _contents(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(_SUFFIXES):
            found.append((f"{name}/{entry.name}", entry.read_bytes()))
    return found
