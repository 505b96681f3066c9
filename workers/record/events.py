"""What happens to a trial, one class an event: a line of ``events.jsonl``, or only reported to who watches.

Writing is strict, reading is tolerant: a line of another release, or one that lacks what its class needs, is an
`UnknownEvent`, and what a class does not know is left out. Nothing read ever raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Event(BaseModel):
    """One event. ``event`` is its name on disk, ``time`` when it was recorded, in seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    event: str
    time: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As one line of ``events.jsonl``, and as Ray carries it; what is None is left out."""
        return self.model_dump(mode="json", exclude_none=True)


class AttemptStarted(Event):
    """A process took the trial up; ``code`` is the version of this software."""

    event: Literal["attempt"] = "attempt"
    host: str
    pid: int
    device: str
    code: str


class Resumed(Event):
    """The attempt goes on after ``epoch`` whole epochs and ``step`` steps of the next."""

    event: Literal["resumed"] = "resumed"
    epoch: int
    step: int


class EpochFinished(Event):
    """A whole epoch: mean loss, last learning rate, wall time and the tiles trained in it; validation scores (percent)
    where it was validated. An attempt that went on within the epoch has time and tiles of its own part.
    """

    event: Literal["epoch"] = "epoch"
    epoch: int
    loss: float
    lr: float
    seconds: float
    tiles: int | None = None
    val_miou: float | None = None
    val_mean_f1: float | None = None
    val_overall_accuracy: float | None = None

    def values(self) -> dict[str, Any]:
        """The epoch alone, as a checkpoint's history holds it."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"event", "time", "tiles"})


class OutOfMemory(Event):
    """Memory ran out. ``goes_on``: from the checkpoint in the same way, alone on the device; else a batch did not fit
    even so, and the trial begins anew with batches in ``micro_batches`` parts.
    """

    event: Literal["out_of_memory"] = "out_of_memory"
    micro_batches: int
    goes_on: bool = False


class CheckpointDiscarded(Event):
    """There was a checkpoint, and it is not continued from."""

    event: Literal["checkpoint_discarded"] = "checkpoint_discarded"
    reason: str


class Diverged(Event):
    """Training ended early, in ``epoch``: its numbers were no numbers any more."""

    event: Literal["diverged"] = "diverged"
    epoch: int
    message: str = ""


class Interrupted(Event):
    """The attempt was asked to leave and saved its state."""

    event: Literal["interrupted"] = "interrupted"


class StoppedEarly(Event):
    """The trial was given up after ``epoch`` whole epochs, its state saved; ``message`` says why. It is ``pruned``."""

    event: Literal["stopped_early"] = "stopped_early"
    epoch: int
    message: str


class Failed(Event):
    """The attempt failed; ``kind`` is that of `cryobench.conf.errors`, ``crashed`` for what nobody foresaw."""

    event: Literal["failed"] = "failed"
    kind: str
    message: str
    trace: str = ""


class Finished(Event):
    """There is a result."""

    event: Literal["finished"] = "finished"
    status: str


class Pruned(Event):
    """The best weights of a finished trial, ``file``, were removed with ``bytes`` in all; its result stands."""

    event: Literal["pruned"] = "pruned"
    file: str
    bytes: int


class Note(Event):
    """Something the user should read; nothing ends by it."""

    event: Literal["note"] = "note"
    message: str


class SystemLoad(Event):
    """What the trial's node and process were busy with, as means since the last such event: names of MLflow's system
    metrics (``cpu_utilization_percentage``, ``gpu_0_memory_usage_megabytes``, ...). Nothing is decided by it.
    """

    event: Literal["system_load"] = "system_load"
    node: str
    values: dict[str, float]


class Decoding(Event):
    """Reported only: how far the store's decoding into the node cache is."""

    event: Literal["decoding"] = "decoding"
    decoded: int
    tiles: int


class Ended(Event):
    """Reported only, by a sweep's worker: it is done with the trial, however that ended."""

    event: Literal["ended"] = "ended"
    status: str
    kind: str | None = None
    message: str | None = None
    epochs: int | None = None


class Placed(Event):
    """Reported only: the node (Ray's id of it) and process that took the trial up, and its device.

    ``device_memory_mb`` is all that the device has, where it is a GPU.
    """

    event: Literal["placed"] = "placed"
    node: str
    host: str
    pid: int
    device: str
    device_memory_mb: float | None = None


class Stumbled(Event):
    """Reported only: an attempt failed in a way that may be its node's; the driver decides what follows."""

    event: Literal["stumbled"] = "stumbled"
    kind: str
    message: str


class UnknownEvent(Event):
    """A line that no class here can read; ``line`` is what it holds."""

    event: str = ""
    line: dict[str, Any] = Field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The line as it was."""
        return dict(self.line)


Report = Callable[[Event], None]

_CLASSES: dict[str, type[Event]] = {
    str(kind.model_fields["event"].default): kind
    for kind in (
        AttemptStarted,
        Resumed,
        EpochFinished,
        OutOfMemory,
        CheckpointDiscarded,
        Diverged,
        Interrupted,
        StoppedEarly,
        Failed,
        Finished,
        Pruned,
        Note,
        SystemLoad,
        Decoding,
        Ended,
        Placed,
        Stumbled,
    )
}


def event_of(plain: Mapping[str, Any]) -> Event:
    """The inverse of `Event.plain`; `UnknownEvent` for all else."""
    kind = _CLASSES.get(str(plain.get("event")))
    if kind is not None:
        try:
            return kind.model_validate(dict(plain))
        except ValidationError:
            pass
    time = plain.get("time")
    known_time = float(time) if isinstance(time, int | float) else 0.0
    return UnknownEvent(event=str(plain.get("event", "")), time=known_time, line=dict(plain))
