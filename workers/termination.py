"""Being asked to leave: SIGTERM, as a machine sends that is about to be taken away."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Set once this process was asked to leave.
_asked = threading.Event()
#: Set while a trial runs that is to be saved first.
_busy = threading.Event()


def asked_to_leave() -> bool:
    """Whether this process was sent SIGTERM since `listen`."""
    return _asked.is_set()


def listen() -> None:
    """From now on SIGTERM is noted while a trial runs, and ends the process else. Call it in the main thread."""

    def leave(*_: object) -> None:
        _asked.set()
        if not _busy.is_set():
            os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


@contextmanager
def busy() -> Iterator[None]:
    """A trial runs."""
    _busy.set()
    try:
        yield
    finally:
        _busy.clear()


@contextmanager
def listening() -> Iterator[None]:
    """`listen` for as long as the context lasts, in which a trial runs."""
    before = signal.getsignal(signal.SIGTERM)
    listen()
    try:
        with busy():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked.clear()
