"""The record of a sweep on a storage: what was asked for, so that it can be resumed and its trials be grouped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cryobench.conf.errors import ConfigError, UnknownNameError
from cryobench.conf.schema import SweepSpec
from cryobench.workers.record.files import write_json


@dataclass(frozen=True)
class SweepRecord:
    """A sweep by name: when it was first asked for, every distinct request, and all trial ids in order."""

    name: str
    created: float
    requests: tuple[SweepSpec, ...]
    trials: tuple[str, ...]


def record_sweep(storage: Path, sweep: SweepSpec, asked: Iterable[str]) -> SweepRecord:
    """Note a sweep and the ids of its trials under its name, beside what was asked for under that name before."""
    path = _path(storage, sweep.name)
    old = read_sweep(storage, sweep.name) if path.exists() else None
    requests = list(old.requests) if old else []
    if sweep not in requests:
        requests.append(sweep)
    trials = list(old.trials) if old else []
    trials += [trial for trial in asked if trial not in trials]
    record = SweepRecord(sweep.name, old.created if old else time.time(), tuple(requests), tuple(trials))
    plain: dict[str, Any] = {
        "name": record.name,
        "created": record.created,
        "requests": [request.model_dump(mode="json") for request in requests],
        "trials": trials,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, plain)
    return record


def read_sweep(storage: Path, name: str) -> SweepRecord:
    """The record of sweep ``name``.

    Raises:
        UnknownNameError: no sweep of that name was ever started on this storage.
    """
    path = _path(storage, name)
    if not path.exists():
        known = [p.stem for p in (storage / "sweeps").glob("*.json")]
        raise UnknownNameError("sweep on this storage", name, known, f"Storage: {storage}.")
    try:
        plain = json.loads(path.read_text())
        requests = tuple(SweepSpec.model_validate(request) for request in plain["requests"])
    except (ValueError, KeyError, ValidationError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}). Start the sweep again with its original overrides; "
            "finished trials are found by their ids."
        ) from error
    return SweepRecord(plain["name"], plain["created"], requests, tuple(plain["trials"]))


def all_sweeps(storage: Path) -> list[SweepRecord]:
    """All sweeps of a storage, oldest first."""
    names = [path.stem for path in (storage / "sweeps").glob("*.json")]
    return sorted((read_sweep(storage, name) for name in names), key=lambda record: (record.created, record.name))


def _path(storage: Path, name: str) -> Path:
    return storage / "sweeps" / f"{name}.json"
