"""What a worker tells the driver: news at most once a second, endings at once.

Every report is one that the worker waits for and the driver answers, so that reporting each epoch of a small trial
would cost more than the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cryobench.workers.record.events import (
    CheckpointDiscarded,
    Decoding,
    Diverged,
    Ended,
    EpochFinished,
    Event,
    Note,
    OutOfMemory,
    Placed,
    Resumed,
    Stumbled,
)

#: Events the driver is interested in; all others stay in the folder.
_NEWS = (Placed, Resumed, EpochFinished, Diverged, Decoding, Note, OutOfMemory, CheckpointDiscarded, Ended, Stumbled)
_AT_ONCE = (Placed, Ended, Stumbled)
_EVERY_S = 1.0


class Reporter:
    """Gathers events and hands them to ``send`` as one plain report, with the epoch and score that schedulers read."""

    def __init__(self, send: Callable[[dict[str, Any]], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._clock = send, clock
        self._waiting: list[Event] = []
        self._sent = -_EVERY_S
        self._epoch, self._score = 0, 0.0

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if not isinstance(event, _NEWS):
            return
        if isinstance(event, EpochFinished):
            event = self._with_last_score(event)
            self._waiting = [waiting for waiting in self._waiting if not isinstance(waiting, EpochFinished)]
        elif isinstance(event, Decoding):
            self._waiting = [waiting for waiting in self._waiting if not isinstance(waiting, Decoding)]
        self._waiting.append(event)
        if isinstance(event, _AT_ONCE):
            self.flush()
        else:
            self.flush_if_due()

    def flush_if_due(self) -> None:
        """Send what waits if a second has passed; called after every step, so that nothing waits for a whole epoch."""
        if self._waiting and self._clock() - self._sent >= _EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if self._waiting:
            events, self._waiting = [event.plain() for event in self._waiting], []
            self._sent = self._clock()
            self._send({"events": events, "epoch": self._epoch, "val_miou": self._score})

    def _with_last_score(self, event: EpochFinished) -> EpochFinished:
        """The newest epoch stands for those before it that were not sent; none of them loses its score."""
        self._epoch = event.epoch
        if event.val_miou is not None:
            self._score = event.val_miou
            return event
        last = next((e.val_miou for e in reversed(self._waiting) if isinstance(e, EpochFinished)), None)
        return event.model_copy(update={"val_miou": last})
