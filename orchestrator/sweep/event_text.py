"""A trial's events, and what drivers noted of it, as lines for people."""

from __future__ import annotations

import time
from typing import Any

from cryobench.workers.record.events import (
    AttemptStarted,
    CheckpointDiscarded,
    Diverged,
    EpochFinished,
    Event,
    Failed,
    Finished,
    Note,
    OutOfMemory,
    Resumed,
    StoppedEarly,
    SystemLoad,
)


def event_text(event: Event) -> str:
    """One event in words; one of another release by its name and what it holds."""
    if isinstance(event, AttemptStarted):
        return f"begun on {event.host}, process {event.pid}, {event.device}, cryobench {event.code}"
    if isinstance(event, Resumed):
        return f"going on after epoch {event.epoch}" + (f", step {event.step}" if event.step else "")
    if isinstance(event, EpochFinished):
        score = "" if event.val_miou is None else f", validation mIoU {event.val_miou:.2f}"
        pace = f", {event.tiles / event.seconds:.3g} tiles/s" if event.tiles and event.seconds else ""
        return f"epoch {event.epoch}: loss {event.loss:.4f}, lr {event.lr:.3g}, {event.seconds:.3g} s{pace}{score}"
    if isinstance(event, OutOfMemory):
        if event.goes_on:
            return "out of memory: going on from the checkpoint, alone on the device"
        return f"out of memory: from the start again, gradients from {event.micro_batches} parts of a batch"
    if isinstance(event, CheckpointDiscarded):
        return f"checkpoint discarded ({event.reason}); from the start again"
    if isinstance(event, Diverged):
        return f"diverged in epoch {event.epoch}: {event.message}"
    if isinstance(event, StoppedEarly):
        return f"stopped early after epoch {event.epoch}: {event.message}"
    if isinstance(event, Failed):
        return f"failed ({event.kind}): {event.message}"
    if isinstance(event, Finished):
        return f"finished: {event.status}"
    if isinstance(event, Note):
        return event.message
    if isinstance(event, SystemLoad):
        return f"load of {event.node}: " + ", ".join(f"{name} {value:g}" for name, value in event.values.items())
    plain = {key: value for key, value in event.plain().items() if key not in ("event", "time")}
    return event.event.replace("_", " ") + _details(plain)


def log_text(line: dict[str, Any]) -> str:
    """A line of a sweep's log in words."""
    known = ("format", "time", "level", "event", "trial", "message")
    details = {key: value for key, value in line.items() if key not in known}
    message = f": {line['message']}" if line.get("message") else ""
    return f"driver: {str(line.get('event')).replace('_', ' ')}{message}{_details(details)}"


def at(seconds: float) -> str:
    """A moment as this machine's clock has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _details(values: dict[str, Any]) -> str:
    return f" ({', '.join(f'{key} {value}' for key, value in values.items())})" if values else ""
