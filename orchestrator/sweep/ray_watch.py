"""Notices that a Ray of this process's own has lost one of its servers: Ray would end this process without a word."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_SERVERS = {"gcs_server", "raylet"}
_EVERY_S = 0.5
_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def ends_with_ray(log: Path, terminal: int) -> Iterator[None]:
    """While it lasts, the end of a server that this process has started ends it, with one line on ``terminal``.

    No trial is harmed more than by any other kill: the same command goes on from the last checkpoints.

    Args:
        log: what Ray says is there.
        terminal: the descriptor of what the user sees.
    """
    servers = {child: child.name() for child in psutil.Process().children() if child.name() in _SERVERS}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY_S):
            gone = [name for server, name in servers.items() if not _runs(server)]
            if gone and not over.is_set():
                said = (
                    f"Error: Ray's {gone[0]} on this machine has ended (killed, told to, out of memory); nothing can "
                    "run without it. Run the same command again: what is finished is kept, the rest goes on from its "
                    f"last checkpoints. What Ray said is in {log}\n"
                )
                os.write(terminal, (_SHOW_CURSOR if os.isatty(terminal) else b"") + said.encode())
                os._exit(1)  # the main thread waits within Ray, for a minute

    threading.Thread(target=watch, name="ray-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _runs(server: psutil.Process) -> bool:
    try:
        return bool(server.is_running() and server.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
