"""Where a trial runs: nothing here can change its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from cryobench.conf.schema import ResourceSpec


@dataclass(frozen=True)
class Place:
    """Folders, resources and device of a trial.

    ``storage`` is a local folder; with ``mirror``, the URL of an object store, it is this node's working copy of it.
    ``data_dir`` may be the URL of an object store.
    """

    storage: Path
    data_dir: Path | str
    cache_dir: Path
    weights_dir: Path | None = None
    resources: ResourceSpec = field(default_factory=ResourceSpec)
    device: str = "auto"
    mirror: str | None = None

    def torch_device(self) -> torch.device:
        """The device asked for; ``auto`` is a GPU where there is one."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)
