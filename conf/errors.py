"""The one exception hierarchy.

Every message says what was found, what was expected and what to do. ``kind`` is what a failed trial
records (`failed` with its kind), and decides whether running the sweep again tries it again.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class CryobenchError(Exception):
    """Base of all errors that are explained to the user in one message."""

    kind = "error"


class ConfigError(CryobenchError):
    """A configuration value, name or override that cannot be used."""

    kind = "invalid_config"


class UnknownNameError(ConfigError):
    """A name that is not among the known ones; the message lists them."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1)
        guess = f" Did you mean '{close[0]}'?" if close else ""
        tail = f" {hint}" if hint else ""
        super().__init__(f"Unknown {what} '{name}'.{guess} Known: {', '.join(names) or 'none'}.{tail}")


class NotBuiltError(CryobenchError):
    """An encoder or data set that is configured but not part of this release yet."""

    kind = "not_built"


class DataError(CryobenchError):
    """Raw data that is not as its layout promises."""

    kind = "bad_data"


class MissingLibraryError(CryobenchError):
    """A library of an extra that is not installed."""

    kind = "missing_library"


class MissingDataError(DataError):
    """Files or a tile store that are not there."""

    kind = "missing_data"


class CorruptDataError(DataError):
    """A stored tile that is not what was written."""

    kind = "corrupt_data"


class HungReadError(DataError):
    """A read that does not come back."""

    kind = "hung_read"


class MissingWeightsError(CryobenchError):
    """A published checkpoint that is not there."""

    kind = "missing_weights"


class FetchError(CryobenchError):
    """A download that did not come."""

    kind = "fetch"


class BadCheckpointError(CryobenchError):
    """A checkpoint that cannot be read, or does not fit the encoder it was asked for."""

    kind = "bad_checkpoint"


class OutOfMemoryError(CryobenchError):
    """The trial does not fit into the memory of its device."""

    kind = "out_of_memory"


class DiskFullError(CryobenchError):
    """No space left while writing; what was written before is whole."""

    kind = "disk_full"


class TrackingError(CryobenchError):
    """The MLflow server cannot be reached or refuses."""

    kind = "tracking"


class GpuFaultError(CryobenchError):
    """A GPU that fails, or is not there any more."""

    kind = "gpu_fault"


class MissingMountError(CryobenchError):
    """A node on which the sweep's storage is another folder, or none."""

    kind = "missing_mount"


class OtherSoftwareError(CryobenchError):
    """A node whose cryobench, torch or Python is not the driver's."""

    kind = "other_software"


class AvoidedNodeError(CryobenchError):
    """A trial that was given to a node on which nothing is to begin any more."""

    kind = "avoided_node"


class StorageError(CryobenchError):
    """A storage that is not there, cannot be reached or refuses."""

    kind = "storage"


class HeldElsewhereError(CryobenchError):
    """A trial or a sweep that another process holds."""

    kind = "busy"


class LeaseLostError(CryobenchError):
    """Another process has taken over what this one held; nothing may be written any more."""

    kind = "lease_lost"


class RecordError(CryobenchError):
    """A file of a storage that is damaged, or was written by a later release."""

    kind = "bad_record"


class InterruptedTrialError(CryobenchError):
    """A trial that was asked to stop at an epoch boundary; it continues when run again."""

    kind = "interrupted"


class StoppedEarlyError(InterruptedTrialError):
    """A trial that was given up before its end; it stands as pruned and continues where its end is asked for."""


#: Failures that say nothing about the trial itself: running the sweep again tries them again.
RETRIED_KINDS = frozenset(
    {
        "avoided_node",
        "busy",
        "crashed",
        "disk_full",
        "gpu_fault",
        "hung_read",
        "interrupted",
        "lease_lost",
        "low_memory",
        "missing_data",
        "missing_mount",
        "missing_weights",
        "other_software",
        "storage",
    }
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: What a file system answers that is not there, not as it was, or not to be written.
_AWAY = {
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ESTALE,
    errno.EIO,
    errno.ENODEV,
    errno.ENXIO,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}


def disk_full(error: OSError, path: Path | str) -> DiskFullError | None:
    """The explained form of ``error`` if it says that the disk is full, else None."""
    if error.errno not in _FULL:
        return None
    return DiskFullError(
        f"No space left while writing {path} ({error.strerror}). Free some space there or choose another place "
        "with --storage / --data-dir / --cache-dir, then run the same command again: finished work is kept."
    )


def storage_trouble(error: OSError, path: Path | str) -> CryobenchError | None:
    """The explained form of ``error`` if it says that a storage is full, read-only or away, else None."""
    full = disk_full(error, path)
    if full is not None or error.errno not in _AWAY:
        return full
    return StorageError(
        f"{path} cannot be used ({error.strerror}). Expected the folder of the storage, mounted and writable: bring it "
        "back to its place, or name another with --storage, then run the same command again: finished work is kept."
    )
