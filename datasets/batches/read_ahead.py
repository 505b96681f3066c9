"""Reads that run ahead of their use, in order, and that are noticed when they hang."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

from cryobench.conf.errors import HungReadError

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    pool: Executor, read: Callable[[T], R], items: Iterable[T], ahead: int, stall_s: float | None = None
) -> Iterator[R]:
    """``read`` of every item, in order, by ``pool``; ``ahead`` of them are under way or ready besides the next.

    Raises:
        HungReadError: one did not come within ``stall_s`` seconds.
    """
    flying: deque[Future[R]] = deque()
    for item in items:
        flying.append(pool.submit(read, item))
        if len(flying) > ahead:
            yield _landed(flying.popleft(), stall_s)
    while flying:
        yield _landed(flying.popleft(), stall_s)


def _landed(future: Future[R], stall_s: float | None) -> R:
    try:
        return future.result(stall_s)
    except TimeoutError:
        if future.done():  # the read itself timed out, and says so
            return future.result()
        raise HungReadError(
            f"A read of tiles did not come back within {stall_s:g} s. Is the disk or file server that holds the tiles "
            "well? The trial continues from its last checkpoint; resources.stall_timeout_s sets the patience."
        ) from None
