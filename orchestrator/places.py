"""Where things lie: storage, data, node cache, weights. Options win over environment variables over defaults."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from cryobench.conf.errors import ConfigError, storage_trouble
from cryobench.datasets.store.location import below, is_url, locate
from cryobench.workers.record.node_folders import node_cache_dir, working_copy

if TYPE_CHECKING:
    from cryobench.conf.schema import ResourceSpec
    from cryobench.workers.place import Place
    from cryobench.workers.record.mirror import Mirror


@dataclass(frozen=True)
class OwnData:
    """A data set's places below a local data folder."""

    store: Path
    downloads: Path
    unpacked: Path
    generated: Path


@dataclass(frozen=True)
class Places:
    """The folders that commands work on. ``data_dir`` may be the URL of an object store, which is only read.

    ``storage`` is a local folder; with ``storage_url``, an object store's, it is the driver's working copy of it, and
    ``worker_storage`` that of the workers on the same machine. ``own_cache``: no cache was named, so each node has
    its own. Nothing is read from a store before a command says what it needs (`bring_trials` and the like, which do
    nothing where the storage is a folder; all of them raise StorageError where the store cannot be reached).
    """

    storage: Path
    data_dir: Path | str
    cache_dir: Path
    weights_dir: Path
    config_dir: Path | None = None
    storage_url: str | None = None
    own_cache: bool = False

    @property
    def worker_storage(self) -> Path:
        """Where workers write their trials: the storage itself, or their node's working copy."""
        return self.storage.with_name("worker") if self.storage_url else self.storage

    def bring_sweeps(self) -> None:
        """Bring what was asked for under which name into the working copy."""
        if self._mirror:
            self._mirror.pull_sweeps(self.storage)

    def bring_trials(self, trials: Collection[str]) -> None:
        """Bring the small files of these trials."""
        if self._mirror and trials:
            self._mirror.pull_trials(self.storage, trials)

    def bring_table(self) -> None:
        """Bring the compacted leaderboard."""
        if self._mirror:
            self._mirror.pull_table(self.storage)

    def bring_projections(self) -> None:
        """Bring sweeps and the whole leaderboard, as who writes them needs."""
        if self._mirror:
            self._mirror.pull_projections(self.storage)

    def bring_all(self) -> None:
        """Bring sweeps, leaderboard and the small files of all trials."""
        if self._mirror:
            self._mirror.pull(self.storage)

    def prepare_storage(self) -> None:
        """Make the storage's folder where there is none, and see that it can be written.

        Raises:
            StorageError, DiskFullError: it cannot.
        """
        probe = self.storage / f".writable.{os.getpid()}"
        try:
            (self.storage / "trials").mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise storage_trouble(error, self.storage) or error from error

    @cached_property
    def _mirror(self) -> Mirror | None:
        from cryobench.workers.record.mirror import Mirror

        return Mirror(self.storage_url) if self.storage_url else None

    def options(self) -> str:
        """The options that name these folders again, for a command line that goes on from another folder."""
        given = {"--storage": self.storage_url or self.storage, "--data-dir": self.data_dir}
        near = self.data_dir if isinstance(self.data_dir, Path) else Path("cryobench-data").resolve()
        if not self.own_cache:
            given["--cache-dir"] = self.cache_dir
        if self.weights_dir != near / "weights":
            given["--weights-dir"] = self.weights_dir
        return " ".join(f"{option} {shlex.quote(str(value))}" for option, value in given.items())

    def for_trials(self, resources: ResourceSpec, device: str = "auto") -> Place:
        """The same for a worker that runs trials."""
        from cryobench.workers.place import Place

        return Place(
            self.worker_storage,
            self.data_dir,
            self.cache_dir,
            self.weights_dir,
            resources,
            device,
            mirror=self.storage_url,
            own_cache=self.own_cache,
        )

    def store(self, dataset: str) -> Path | str:
        """The tile store of a data set."""
        return below(self.data_dir, f"{dataset}.zarr")

    def own_data(self, dataset: str) -> OwnData:
        """Where a data set is downloaded, unpacked, generated and converted.

        Raises:
            ConfigError: the data folder is a URL.
        """
        if not isinstance(self.data_dir, Path):
            raise ConfigError(
                f"--data-dir {self.data_dir}: data sets are prepared in a local folder. Prepare {dataset} there, copy "
                f"{dataset}.zarr to this address with your object store's own tool, then give the address to sweeps."
            )
        folder = self.data_dir
        return OwnData(
            store=folder / f"{dataset}.zarr",
            downloads=folder / "downloads" / dataset,
            unpacked=folder / "unpacked" / dataset,
            generated=folder / "raw" / dataset,
        )


def places(
    storage: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    weights_dir: str | None = None,
    config_dir: str | None = None,
) -> Places:
    """Folders from options; those not given from CRYOBENCH_* variables, else below the current folder.

    A storage at a URL is not read yet: see `Places`.
    """
    given = data_dir or os.environ.get("CRYOBENCH_DATA")
    data = given if given and is_url(given) else _folder(given, "CRYOBENCH_DATA", "cryobench-data")
    if isinstance(data, str):
        locate(data)  # an address that is none is said so here, once
    near = data if isinstance(data, Path) else Path("cryobench-data").resolve()
    cache = _folder(cache_dir, "CRYOBENCH_CACHE", str(node_cache_dir()))
    asked = storage or os.environ.get("CRYOBENCH_STORAGE") or "cryobench-storage"
    if is_url(asked):
        try:
            urlsplit(asked)
        except ValueError as error:
            raise ConfigError(f"{asked[:300]} is no address ({error}). Expected e.g. s3://bucket/folder.") from error
    if asked.startswith("file://"):
        if urlsplit(asked).netloc not in ("", "localhost"):
            raise ConfigError(f"{asked}: expected file:///FOLDER, of this machine.")
        asked = unquote(urlsplit(asked).path)
    url = asked.rstrip("/") if is_url(asked) else None
    local = working_copy(cache, url, "driver") if url else _resolved(asked)
    return Places(
        storage=local,
        storage_url=url,
        data_dir=data,
        cache_dir=cache,
        weights_dir=_folder(weights_dir, "CRYOBENCH_WEIGHTS", str(near / "weights")),
        config_dir=_folder(config_dir, "CRYOBENCH_CONFIG", "")
        if config_dir or os.environ.get("CRYOBENCH_CONFIG")
        else None,
        own_cache=not (cache_dir or os.environ.get("CRYOBENCH_CACHE")),
    )


def _folder(given: str | None, variable: str, default: str) -> Path:
    text = given or os.environ.get(variable) or default
    if is_url(text):
        raise ConfigError(f"{text}: expected a local folder; only --storage and --data-dir may be URLs.")
    return _resolved(text)


def _resolved(text: str) -> Path:
    """The folder that ``text`` names, which need not be there; no command then finds something else in its place."""
    try:
        path = Path(text).expanduser().resolve()
        path.as_posix().encode()
        if stat.S_ISDIR(path.stat().st_mode):
            return path
        reason = "it is no folder"
    except (FileNotFoundError, PermissionError):
        return path
    # RuntimeError: a user that is not known, or links in a circle; ValueError: characters that no path can hold.
    except (OSError, RuntimeError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
    raise ConfigError(f"{text[:300]!r} cannot be used ({reason[:200]}). Expected a folder.")
