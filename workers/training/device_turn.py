"""Taking turns on a device: many trials share it, and one that ran out of memory tries again alone.

Two lock files a device in the node's cache folder, which all trials on a node have in common. Every running trial holds
the *device* file shared; one that wants to be alone gives that up first, so that two that run out at once never wait
for each other, and then takes the *gate* and the device exclusively, in this order. Newcomers pass the gate, so that
they wait behind who wants to be alone. The kernel takes all of it back with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

#: How long one waits for its turn, in seconds, before it goes on anyway: an hour, long enough for neighbours that are
#: about to finish, and short beside a trial that would otherwise wait for a day of theirs.
PATIENCE_S = 3600.0
_ASK_EVERY_S = 0.2


@contextmanager
def sharing_device(cache_dir: Path, device: torch.device, keep_waiting: Callable[[], None]) -> Iterator[bool]:
    """Run beside others; waits, for `PATIENCE_S` at most, while another trial is alone on the device.

    Args:
        cache_dir: the node's cache folder.
        device: that of the trial.
        keep_waiting: called while waiting; may raise to give up.

    Yields:
        Whether it was this one's turn; False if it went on without.
    """
    with _opened(cache_dir, device) as (gate, turn):
        until = time.monotonic() + PATIENCE_S
        entered = _lock(gate, fcntl.LOCK_SH, until, keep_waiting) and _lock(turn, fcntl.LOCK_SH, until, keep_waiting)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield entered


@contextmanager
def alone_on_device(cache_dir: Path, device: torch.device, keep_waiting: Callable[[], None]) -> Iterator[bool]:
    """Run with the device to oneself, as far as this node's trials go; arguments as for `sharing_device`.

    What runs already is waited for, `PATIENCE_S` at most; nothing new begins meanwhile.
    """
    with _opened(cache_dir, device) as (gate, turn):
        until = time.monotonic() + PATIENCE_S
        alone = _lock(gate, fcntl.LOCK_EX, until, keep_waiting) and _lock(turn, fcntl.LOCK_EX, until, keep_waiting)
        if not alone:  # one of many again: newcomers need not wait for this one
            fcntl.flock(gate, fcntl.LOCK_UN)
            _lock(turn, fcntl.LOCK_SH, 0.0, keep_waiting)
        yield alone


@contextmanager
def _opened(cache_dir: Path, device: torch.device) -> Iterator[tuple[IO[str], IO[str]]]:
    """The two files; closing them gives their locks back."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    name = f"{platform.node()}-{_physical_name(device)}"  # a cache folder may be shared between nodes
    with (cache_dir / f".gate-{name}.lock").open("a") as gate, (cache_dir / f".device-{name}.lock").open("a") as turn:
        yield gate, turn


def _physical_name(device: torch.device) -> str:
    # Ray shows every worker its own GPU as cuda:0; only the UUID says whether two are the same.
    return f"cuda-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else device.type


def _lock(file: IO[str], kind: int, until: float, keep_waiting: Callable[[], None]) -> bool:
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks: there are no turns to take
            return False
        if time.monotonic() > until:
            return False
        keep_waiting()
        time.sleep(_ASK_EVERY_S)
