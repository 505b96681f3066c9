"""Where every trial of a sweep stands, read from the folders alone: quick for thousands, quicker when asked again.

Of a finished trial only how it ended is read, once. Of the others, what changed since the last look, by the times and
sizes of their files.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cryobench.orchestrator.formatting import duration
from cryobench.workers.record.files import read_lines
from cryobench.workers.record.folder import EVENTS, RESULT, SPEC, TrialFolder
from cryobench.workers.record.lease import LEASE

#: Without a lease, an attempt that was not heard of for so long, or for so many of its epochs, is taken for dead.
_SILENCE_S, _SILENCE_EPOCHS = 600.0, 3
#: A process of this machine that is gone is believed to be gone after this; its last lines may be on their way.
_GONE_AFTER_S = 5.0
#: By so much the clock of a node may be behind this one's before its leases look expired.
_CLOCKS_DIFFER_S = 30.0
_TAIL_BYTES = 2048
#: Events that say how a trial without result stands, and its state where that is one of its own. (``pruned`` events are
#: of finished trials whose weights were removed.)
_TURNS = {"attempt": "attempt", "failed": "failed", "interrupted": "interrupted", "stopped_early": "pruned"}

Signature = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class TrialView:
    """One trial as its folder shows it.

    ``state``: waiting, running, expired (begun, and whoever ran it is gone or silent), failed, or how it ended
    (completed, diverged, pruned). Times are in seconds since 1970, durations in seconds.
    """

    trial_id: str
    state: str
    epoch: int = 0
    epochs: int = 0
    label: str = ""
    kind: str | None = None
    message: str | None = None
    host: str = ""
    device: str = ""
    started: float = 0.0
    heard: float = 0.0
    ended: float = 0.0
    seconds: float = 0.0
    seconds_an_epoch: float | None = None
    seconds_left: float | None = None
    load: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> float:
        """The share of its epochs that are done."""
        return min(1.0, self.epoch / self.epochs) if self.epochs else 0.0


class Survey:
    """The trials of a storage, looked at again and again.

    Args:
        storage: the storage, or its working copy.
    """

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._finished: dict[str, TrialView] = {}
        self._read: dict[str, tuple[Signature, dict[str, Any]]] = {}

    def unfinished(self, trials: tuple[str, ...]) -> list[str]:
        """Those of ``trials`` that were not found finished yet: of these alone there may be news."""
        return [trial for trial in trials if trial not in self._finished]

    def look(self, trials: tuple[str, ...], now: float | None = None) -> list[TrialView]:
        """All ``trials``, in order, as they stand now."""
        now = time.time() if now is None else now
        there = _names(self._storage / "trials")
        return [self._one(trial, now) if trial in there else TrialView(trial, "waiting") for trial in trials]

    def _one(self, trial: str, now: float) -> TrialView:
        if trial in self._finished:
            return self._finished[trial]
        path = self._storage / "trials" / trial
        result = _plain(path / RESULT)
        if result is not None and isinstance(result.get("status"), str):
            view = self._finished[trial] = _ended(trial, path, result)
            return view
        if result is not None or (path / RESULT).exists():
            state = TrialFolder(self._storage, trial).state()
            return TrialView(trial, state.status, kind=state.kind, message=state.message)
        signature = tuple(_stamp(path / name) for name in (SPEC, EVENTS))
        if trial not in self._read or self._read[trial][0] != signature:
            self._read[trial] = (signature, _told(path))
        return _unfinished(trial, self._read[trial][1], _plain(path / LEASE), now)


def _told(path: Path) -> dict[str, Any]:
    """What spec and events say of a trial without result, as the fields of its view and the last ``turn``."""
    told: dict[str, Any] = {"turn": None, "epochs": 0, "label": "", "pid": None}
    spec = _plain(path / SPEC) or {}
    try:
        told["epochs"] = int(spec["protocol"]["epochs"])
        names = " · ".join(str(spec[part]["name"]) for part in ("encoder", "dataset", "regime"))
        told["label"] = f"{names} · lr {spec['lr']:g} · seed {spec['seed']}"
    except (KeyError, TypeError, ValueError):
        pass  # a damaged spec: the trial is shown by its id, and the sweep that runs it says what is wrong
    ends: list[float] = []
    durations: list[float] = []
    for line in read_lines(path / EVENTS):
        event, at = line.get("event"), line.get("time")
        told["heard"] = float(at) if isinstance(at, int | float) else told.get("heard", 0.0)
        if turn := _TURNS.get(str(event)):
            told |= {"turn": turn, "kind": line.get("kind"), "message": line.get("message")}
        if event == "attempt":
            told |= {"host": str(line.get("host", "")), "device": str(line.get("device", "")), "pid": line.get("pid")}
            told |= {"started": told["heard"], "load": {}}
            ends, durations = [told["heard"]], []
        elif event == "epoch" and isinstance(line.get("epoch"), int):
            told["epoch"] = line["epoch"]
            ends.append(told["heard"])
            durations.append(float(line.get("seconds") or 0.0))
        elif event in ("checkpoint_discarded", "out_of_memory") and not line.get("goes_on"):
            told["epoch"] = 0
        elif event == "system_load" and isinstance(line.get("values"), dict):
            told["load"] = line["values"]
    if len(ends) > 2:  # between ends lie validation and checkpoints too; the first epoch's includes opening the data
        told["seconds_an_epoch"] = (ends[-1] - ends[1]) / (len(ends) - 2)
    elif durations:
        told["seconds_an_epoch"] = durations[-1]
    told["last_epoch_at"] = ends[-1] if ends else 0.0
    return told


def _unfinished(trial: str, told: dict[str, Any], lease: dict[str, Any] | None, now: float) -> TrialView:
    state, seen = _state(told, lease, now)
    pace, left = told.get("seconds_an_epoch"), None
    epoch, epochs = told.get("epoch", 0), told["epochs"]
    if state == "running" and pace is not None and epochs:
        under_way = min(pace, max(0.0, now - told["last_epoch_at"]))
        left = max(0.0, (epochs - epoch) * pace - under_way)
    return TrialView(
        trial,
        state,
        epoch=epoch,
        epochs=epochs,
        label=told["label"],
        kind=told.get("kind") if state == "failed" else None,
        message=seen or (told.get("message") if state in ("failed", "pruned") else None),
        host=told.get("host", "") or str((lease or {}).get("host", "")),
        device=told.get("device", ""),
        started=told.get("started", 0.0),
        heard=told.get("heard", 0.0),
        ended=told.get("heard", 0.0) if state in ("failed", "pruned") else 0.0,
        seconds=told.get("heard", 0.0) - told.get("started", 0.0),
        seconds_an_epoch=pace,
        seconds_left=left,
        load=told.get("load", {}),
    )


def _state(told: dict[str, Any], lease: dict[str, Any] | None, now: float) -> tuple[str, str | None]:
    """The state of a trial without result, and what is to be said of it."""
    lease = lease or {}
    expires = None if lease.get("released") else lease.get("expires")
    if isinstance(expires, int | float):
        if lease.get("host") == platform.node() and not _alive(lease.get("pid")):
            return "expired", "its process is gone"
        if expires + _CLOCKS_DIFFER_S >= now:
            return "running", None
        if told["turn"] in ("attempt", None):
            return "expired", f"its lease expired {duration(now - expires)} ago"
    turn = told["turn"]
    if turn in ("failed", "pruned"):
        return turn, None
    if turn != "attempt":
        return "waiting", None
    silence = now - told.get("heard", 0.0)
    if silence > _GONE_AFTER_S and told.get("host") == platform.node() and not _alive(told["pid"]):
        return "expired", "its process is gone"
    if silence > max(_SILENCE_S, _SILENCE_EPOCHS * (told.get("seconds_an_epoch") or 0.0)):
        return "expired", f"not heard of for {duration(silence)}"
    return "running", None


def _ended(trial: str, path: Path, result: dict[str, Any]) -> TrialView:
    cost, provenance = result.get("cost") or {}, result.get("provenance") or {}
    epochs = result.get("epochs", 0)
    return TrialView(
        trial,
        str(result["status"]),
        epoch=epochs,
        epochs=epochs,
        message=result.get("message"),
        host=str(provenance.get("host", "")),
        device=str(provenance.get("device", "")),
        ended=_last_time(path / EVENTS) or (path / RESULT).stat().st_mtime,
        seconds=float(cost.get("total_seconds") or 0.0),
    )


def _last_time(path: Path) -> float:
    """When the last whole line of a trial's events was written; 0 if that cannot be told."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return 0.0
    for line in reversed(lines):
        try:
            return float(json.loads(line)["time"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return 0.0


def _plain(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none or only half of one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError:
        return set()


def _alive(pid: object) -> bool:
    return isinstance(pid, int) and psutil.pid_exists(pid)
