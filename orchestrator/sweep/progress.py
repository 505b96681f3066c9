"""What a running sweep shows: a live table on a terminal, one line a finished trial elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.formatting import duration
from cryobench.workers.record.events import (
    CheckpointDiscarded,
    Decoding,
    Ended,
    EpochFinished,
    Event,
    Note,
    OutOfMemory,
)


@dataclass
class _Running:
    spec: TrialSpec
    epoch: int = 0
    doing: str = ""
    loss: float | None = None
    val_miou: float | None = None


@dataclass
class SweepProgress:
    """Counts, running trials and the time left, from what `tell` is given of what the workers report.

    ``to_come``: trials that will be suggested, beside those of ``specs``; ``total`` has them.
    """

    console: Console
    specs: dict[str, TrialSpec]
    epochs_done: dict[str, int]
    total: int
    already: int
    to_come: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"completed": 0, "diverged": 0, "pruned": 0, "failed": 0})
    _running: dict[str, _Running] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _interrupted: set[str] = field(default_factory=set)
    _printed: set[str] = field(default_factory=set)
    _fresh: int = 0
    _epochs_left: int = 0
    _longest: int = 0
    _began: float = field(default_factory=time.monotonic)
    _live: Live | None = None

    def __post_init__(self) -> None:
        epochs = [spec.protocol.epochs for spec in self.specs.values()]
        self._epochs_left, self._longest = sum(epochs) - sum(self.epochs_done.values()), max(epochs, default=0)

    def __enter__(self) -> SweepProgress:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def add(self, spec: TrialSpec) -> None:
        """A trial that was suggested."""
        self.specs[spec.trial_id] = spec
        self._epochs_left += spec.protocol.epochs
        self._longest = max(self._longest, spec.protocol.epochs)
        self.to_come = max(0, self.to_come - 1)

    def tell(self, trial: str, event: Event) -> None:
        """One reported event of a trial."""
        spec = self.specs[trial]
        if isinstance(event, Ended):
            self.end(trial, event.status, event.message)
            return
        running = self._running.setdefault(trial, _Running(spec, self.epochs_done.get(trial, 0)))
        if isinstance(event, EpochFinished):
            self._fresh += max(0, event.epoch - running.epoch)
            running.epoch, running.loss = event.epoch, event.loss
            running.val_miou = running.val_miou if event.val_miou is None else event.val_miou
            self._came_to(trial, running.epoch)
        elif isinstance(event, Decoding):
            running.doing = "" if event.decoded == event.tiles else f"decoding {event.decoded}/{event.tiles}"
        elif isinstance(event, Note):
            self._print_once(event.message)
        elif isinstance(event, CheckpointDiscarded):
            running.epoch = 0
            self._came_to(trial, 0)
            self._print_once(f"{spec.label}: checkpoint discarded ({event.reason}); from the start again")
        elif isinstance(event, OutOfMemory) and event.goes_on:
            self._print_once(f"{spec.label}: out of memory; going on from its checkpoint, alone on the device")
        elif isinstance(event, OutOfMemory):
            running.epoch = 0
            self._came_to(trial, 0)
            self._print_once(
                f"{spec.label}: out of memory; begun again, gradients from {event.micro_batches} parts of a batch"
            )

    def _came_to(self, trial: str, epoch: int) -> None:
        if trial not in self._ended:
            self._epochs_left -= epoch - self.epochs_done.get(trial, 0)
            self.epochs_done[trial] = epoch

    def running(self) -> set[str]:
        """The trials that run now."""
        return set(self._running)

    def ended(self, trial: str) -> bool:
        """Whether a trial has ended in this run."""
        return trial in self._ended

    def finished(self) -> set[str]:
        """The trials that ended in this run for good: not those that left to go on later."""
        return self._ended - self._interrupted

    def interrupted(self) -> bool:
        """Whether a trial left to go on later."""
        return bool(self._interrupted)

    def tell_low_memory(self, concurrent: int) -> None:
        """Ray ended workers to keep a node from running out of memory; what ran goes on from its checkpoints."""
        self._running.clear()
        self.say(
            f"A node ran out of memory; going on from the last checkpoints, {concurrent} at a time. "
            "resources.max_concurrent sets this from the start."
        )

    def _print_once(self, text: str) -> None:
        if text not in self._printed:
            self._printed.add(text)
            self.say(text)

    def end(self, trial: str, status: str, message: str | None = None) -> None:
        """A trial ended, as reported by its worker or, if that died too often, by Tune."""
        if trial in self._ended:
            return
        self._epochs_left -= self.specs[trial].protocol.epochs - self.epochs_done.get(trial, 0)
        self._ended.add(trial)
        if status == "interrupted":
            self._interrupted.add(trial)
        running = self._running.pop(trial, None)
        self.counts[status] = self.counts.get(status, 0) + 1
        if self._live is None or status != "completed":
            done = self.already + sum(self.counts.values())
            score = f", validation mIoU {running.val_miou:.2f}" if running and running.val_miou is not None else ""
            text = f"[{done}/{self.total}] {self.specs[trial].label}: {status}{score}"
            self.say(f"{text}{f' ({message})' if message else ''}; {self._left()}")

    def recover(self, trial: str, why: str) -> None:
        """An attempt failed and the trial goes on; ``why`` says where, and what is done."""
        self._running.pop(trial, None)
        self.say(f"{self.specs[trial].label}: {why}")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        epochs = self._epochs_left + self.to_come * self._longest
        elapsed = time.monotonic() - self._began
        if not epochs:
            return f"{duration(elapsed)} elapsed"
        if not self._fresh:
            return "time left unknown yet"
        return f"about {duration(elapsed / self._fresh * epochs)} left"

    def _render(self) -> Table:
        done = self.already + sum(self.counts.values())
        extra = "".join(f", {count} {name}" for name, count in self.counts.items() if count and name != "completed")
        table = Table(title=f"{done} of {self.total} trials{extra} · {self._left()}", title_justify="left")
        for name in ("encoder", "data set", "regime", "lr", "epoch", "loss", "val mIoU"):
            table.add_column(name, justify="left" if name in ("encoder", "data set", "regime") else "right")
        for running in list(self._running.values()):
            spec = running.spec
            table.add_row(
                spec.encoder.name,
                spec.dataset.name,
                spec.regime.name,
                f"{spec.lr:g}",
                running.doing or f"{running.epoch}/{spec.protocol.epochs}",
                "" if running.loss is None else f"{running.loss:.3f}",
                "" if running.val_miou is None else f"{running.val_miou:.2f}",
            )
        return table
