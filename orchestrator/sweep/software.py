"""Which software a node runs: trials of one sweep are made by one release of everything that decides about numbers."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from cryobench.conf.errors import OtherSoftwareError
from cryobench.workers.training.provenance import code_version


@dataclass(frozen=True)
class Software:
    """Releases of one process; ``cryobench`` with the commit where it runs from a checkout."""

    cryobench: str
    torch: str
    python: str

    @staticmethod
    @cache
    def here() -> Software:
        """That of this process."""
        return Software(code_version().removesuffix("+changes"), version("torch"), platform.python_version())

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
                "…) and restart its Ray."
            )
