"""What every part of an attempt needs: the trial, its place and folder, whom to tell, and when to leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch

from cryobench.conf.errors import InterruptedTrialError
from cryobench.conf.trial import TrialSpec
from cryobench.workers.place import Place
from cryobench.workers.record.checkpoint import Checkpoints
from cryobench.workers.record.events import Event, Report
from cryobench.workers.record.folder import TrialFolder


class AttemptContext:
    """One attempt at a trial, as its parts see it.

    Args:
        spec: the trial.
        place: where its data, weights and folder are, and what it may use.
        folder: its folder, locked.
        report: called with every event as it is recorded.
        should_stop: asked after every step and evaluated tile; True leaves the trial resumable.
        after_save: called in a thread of its own after each state that was saved, and after each epoch.
    """

    def __init__(
        self,
        spec: TrialSpec,
        place: Place,
        folder: TrialFolder,
        report: Report,
        should_stop: Callable[[], bool],
        after_save: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec, self.place, self.folder = spec, place, folder
        self.device = place.torch_device()
        self.report, self.should_stop, self.after_save = report, should_stop, after_save
        self.checkpoints = Checkpoints(folder.path)
        self.started = time.monotonic()
        self.seconds = dict.fromkeys(("data", "training", "evaluation", "checkpointing"), 0.0)
        self.peak_memory_mb = 0.0

    def record(self, event: Event) -> None:
        """Write an event into the folder, then report it."""
        self.report(self.folder.record(event))

    def leave_if_asked(self, doing: str) -> None:
        """Raise `InterruptedTrialError` if the attempt is to stop, saying what it was doing."""
        if self.should_stop():
            raise InterruptedTrialError(f"Stopped while {doing}.")

    def note_memory(self) -> None:
        """Take the memory in use now into the peak."""
        if self.device.type == "cuda":
            used = float(torch.cuda.max_memory_allocated(self.device))
        else:  # pages of the node cache belong to the kernel, which takes them back when it needs them
            memory = psutil.Process().memory_info()
            used = float(memory.rss - getattr(memory, "shared", 0))
        self.peak_memory_mb = max(self.peak_memory_mb, used / 1e6)

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Count the wall time of the context as spent on ``activity``."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[activity] += time.monotonic() - began
