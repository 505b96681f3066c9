"""A driver that is asked to leave (SIGTERM): its workers save their trials first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Machines that are taken away give 30 seconds.
_PATIENCE_S = 25.0


@contextmanager
def leaving_on_sigterm(say: Callable[[], object], running: Callable[[], set[str]]) -> Iterator[None]:
    """On SIGTERM ``say`` it to the workers, wait until what was ``running`` has saved, then interrupt this process.

    Outside the main thread, where no signal can be caught, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked, over = threading.Event(), threading.Event()

    def leave() -> None:
        asked.wait()
        if over.is_set():
            return
        say()
        waited_for, deadline = running(), time.monotonic() + _PATIENCE_S
        while waited_for & running() and time.monotonic() < deadline:
            time.sleep(0.1)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=leave, name="leaving", daemon=True)
    thread.start()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield
    finally:
        over.set()
        asked.set()
        signal.signal(signal.SIGTERM, before)
