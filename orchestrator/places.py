"""Where things lie: storage, data, node cache, weights. Options win over environment variables over defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryobench.conf.errors import ConfigError


@dataclass(frozen=True)
class Places:
    """The folders that commands work on."""

    storage: Path
    data_dir: Path
    cache_dir: Path
    weights_dir: Path
    config_dir: Path | None = None

    def store(self, dataset: str) -> Path:
        """The tile store of a data set."""
        return self.data_dir / f"{dataset}.zarr"

    def raw(self, dataset: str) -> Path:
        """Where generated raw files go."""
        return self.data_dir / "raw" / dataset


def places(
    storage: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    weights_dir: str | None = None,
    config_dir: str | None = None,
) -> Places:
    """Folders from options; those not given from CRYOBENCH_* variables, else below the current folder."""
    data = _folder(data_dir, "CRYOBENCH_DATA", "cryobench-data")
    return Places(
        storage=_folder(storage, "CRYOBENCH_STORAGE", "cryobench-storage"),
        data_dir=data,
        cache_dir=_folder(cache_dir, "CRYOBENCH_CACHE", str(data / "cache")),
        weights_dir=_folder(weights_dir, "CRYOBENCH_WEIGHTS", str(data / "weights")),
        config_dir=_folder(config_dir, "CRYOBENCH_CONFIG", "")
        if config_dir or os.environ.get("CRYOBENCH_CONFIG")
        else None,
    )


def _folder(given: str | None, variable: str, default: str) -> Path:
    text = given or os.environ.get(variable) or default
    if "://" in text:
        raise ConfigError(f"{text}: expected a local folder here; URLs are not supported for it.")
    return Path(text).expanduser().resolve()
