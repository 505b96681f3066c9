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
    """Gathers events and hands them to ``send`` as one plain report, with what schedulers and searches read.

    That is ``training_iteration``, the last whole epoch, and ``validated``: each validation since the last report, in
    order, with the epoch whose weights were validated. A trial that goes on has none before it is validated again.
    """

    def __init__(self, send: Callable[[dict[str, Any]], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._clock = send, clock
        self._waiting: list[Event] = []
        self._sent = -_EVERY_S
        self._epoch = 0
        self._validated: list[dict[str, float]] = []

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if not isinstance(event, _NEWS):
            return
        if isinstance(event, EpochFinished):
            self._take_epoch(event)
        elif isinstance(event, Resumed):
            self._epoch = event.epoch
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
            validated, self._validated = self._validated, []
            # A function's report may say itself which of Tune's iterations it is; Tune would count reports.
            self._send({"events": events, "training_iteration": self._epoch, "validated": validated})

    def _take_epoch(self, event: EpochFinished) -> None:
        """The newest epoch stands for those before it that were not sent, beside the last that was validated."""
        self._epoch = event.epoch
        if event.val_miou is not None:
            self._validated.append({"epoch": event.epoch, "val_miou": event.val_miou})

        def superseded(waiting: Event) -> bool:
            return isinstance(waiting, EpochFinished) and (waiting.val_miou is None or event.val_miou is not None)

        self._waiting = [waiting for waiting in self._waiting if not superseded(waiting)]
