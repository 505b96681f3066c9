"""Where a trial runs: nothing here can change its result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cryobench.conf.errors import ConfigError
from cryobench.conf.schema import ResourceSpec
from cryobench.workers.record.node_folders import node_cache_dir, working_copy


@dataclass(frozen=True)
class Place:
    """Folders, resources and device of a trial.

    ``storage`` is a local folder; with ``mirror``, the URL of an object store, it is this node's working copy of it.
    ``data_dir`` may be the URL of an object store. ``own_cache``: no folder was named for the cache, so it is each
    node's own, and with it the working copy.
    """

    storage: Path
    data_dir: Path | str
    cache_dir: Path
    weights_dir: Path | None = None
    resources: ResourceSpec = field(default_factory=ResourceSpec)
    device: str = "auto"
    mirror: str | None = None
    own_cache: bool = False

    def on_this_node(self) -> Place:
        """The same as seen from the node that calls this."""
        if not self.own_cache:
            return self
        cache = node_cache_dir(self.resources.cache_dir)
        storage = working_copy(cache, self.mirror, "worker") if self.mirror else self.storage
        return replace(self, cache_dir=cache, storage=storage)

    def torch_device(self) -> torch.device:
        """The device asked for; ``auto`` is a GPU where there is one.

        Raises:
            ConfigError: it is none, or this machine has none of it.
        """
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device == "auto":
            return torch.device("cuda" if count else "cpu")
        known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
        if self.device not in known:
            raise ConfigError(f"Device '{self.device}': this machine has {', '.join(known)}. Or leave it to auto.")
        return torch.device(self.device)
