"""Ray for one sweep: started on this machine or connected to, with its own words kept off the terminal."""

from __future__ import annotations

import io
import logging
import os
import platform
import resource
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cryobench.conf.errors import ConfigError
from cryobench.orchestrator.sweep.cluster_access import prepare_access
from cryobench.orchestrator.sweep.ray_watch import ends_with_ray
from cryobench.workers.record.node_folders import own_temporary_folder

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
#: Nothing large goes through Ray's object store: tiles are memory-mapped, results are files.
_OBJECT_STORE_BYTES = 100 * 2**20
#: Characters of a folder below which Ray's sockets (session_…/sockets/plasma_store) keep within a socket's 107.
_LONGEST = 40


@contextmanager
def ray_session(address: str | None, log: Path) -> Iterator[bool]:
    """Ray, of this process or the cluster at ``address``; yields whether it was started here and will end here.

    Args:
        address: HOST:PORT of a cluster or ``auto``; None starts Ray on this machine.
        log: all that is printed meanwhile goes here, but for what goes to a console with a stream of its own.

    Raises:
        ConfigError: the cluster cannot be reached, or does not let us in.
    """
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    if not _is_running():
        prepare_access(address)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the watcher tells of trials that failed, in a line
    with _words_into(log) as terminal:
        if ray.is_initialized():
            yield False
            return
        with own_ray_folder() if address is None else nullcontext() as folder:
            _connect(ray, address, log, folder)
            try:
                with ends_with_ray(log, terminal) if address is None else nullcontext():
                    yield True
            finally:
                ray.shutdown()


def ray_log(storage: Path, sweep: str) -> Path:
    """Where this driver keeps what Ray says: a file in the sweep's folder of logs."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return storage / "sweeps" / "logs" / sweep / f"ray-{stamp}-{platform.node()}-{os.getpid()}.log"


def _is_running() -> bool:
    """Whether this process has a Ray already; one that was never imported is not."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextmanager
def own_ray_folder() -> Iterator[str | None]:
    """A temporary folder for one Ray on this machine; those of earlier ones, whose drivers are gone, are removed.

    It keeps Ray's logs until the next start, for whoever asks what went wrong, and nobody else can look into it. None
    leaves the place to Ray: the user names one (RAY_TMPDIR), or the path of a socket there would be too long.
    """
    if "RAY_TMPDIR" in os.environ:
        yield None
        return
    place = own_temporary_folder("-ray")
    for lock in place.glob("*.lock"):
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):  # else its driver runs
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
    folder = place / secrets.token_hex(4)
    if len(str(folder)) > _LONGEST:
        yield None
        return
    with FileLock(folder.with_suffix(".lock")):
        yield str(folder)


def _connect(ray: Any, address: str | None, log: Path, folder: str | None) -> None:
    if address is None:
        _require_large_files()
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        options |= {"_temp_dir": folder} if folder else {}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises bare ones, too
        with suppress(Exception):
            ray.shutdown()
        what = f"Ray cluster at {address}" if address else "Ray on this machine"
        raise ConfigError(
            f"Cannot use the {what} ({' '.join(str(error).split())[:300]}). What Ray said is in {log}; without "
            "--address the sweep runs on this machine alone."
        ) from error


def _require_large_files() -> None:
    """Raise ConfigError where files may not be as large as Ray's memory of shared objects, which is one."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < 2 * _OBJECT_STORE_BYTES:
        raise ConfigError(
            f"Files are limited to {limit / 2**20:.0f} MB here (ulimit -f), Ray needs {2 * _OBJECT_STORE_BYTES >> 20}. "
            "Raise the limit, e.g. with ulimit -f unlimited, and run the same command again."
        )


@contextmanager
def _words_into(log: Path) -> Iterator[int]:
    """Let what Ray and its libraries print, on whichever stream, go to a file; yields where standard error went."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    except OSError:  # a storage that cannot be written has its own message, elsewhere
        yield 2
        return
    streams, terminal = (sys.stdout, sys.stderr), os.dup(2)
    for stream in streams:
        stream.flush()
    with file:
        sys.stdout = sys.stderr = io.TextIOWrapper(file, write_through=True)
        os.dup2(file.fileno(), 2)
        try:
            yield terminal
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            sys.stdout, sys.stderr = streams
    with suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()
