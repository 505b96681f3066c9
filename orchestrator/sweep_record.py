"""The record of a sweep on a storage: what was asked for, so that it can be resumed and its trials be grouped.

``sweeps/<name>.json``. Requests are kept without their resources, which cannot change a result: a sweep is resumed
with those that were given last. Nor do requests that differ in their scheduler alone stand beside each other: the last
one is what is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from cryobench.conf.errors import ConfigError, CryobenchError, RecordError, UnknownNameError
from cryobench.conf.schema import ResourceSpec, SweepSpec
from cryobench.workers.record.files import is_plain_name, read_record, write_json
from cryobench.workers.record.folder import TrialFolder

RECORD_FORMAT = 3


@dataclass(frozen=True)
class SweepRecord:
    """A sweep by name: when it was first asked for, every distinct request, and all trial ids in order.

    ``requests`` bear the resources that were given last.
    """

    name: str
    created: float
    requests: tuple[SweepSpec, ...]
    trials: tuple[str, ...]


def record_sweep(storage: Path, sweep: SweepSpec, asked: Iterable[str]) -> SweepRecord:
    """Note a sweep and the ids of its trials under its name, beside what was asked for under that name before.

    Raises:
        RecordError: the record that is there is damaged, or was written by a later release.
    """
    path = _path(storage, sweep.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # two drivers on one sweep: neither forgets the other's trials
        old = read_sweep(storage, sweep.name) if path.exists() else None
        requests = [_with_resources(request, sweep.resources) for request in (old.requests if old else ())]
        same = [number for number, request in enumerate(requests) if _trained(request) == _trained(sweep)]
        if same:
            requests[same[0]] = sweep
        else:
            requests.append(sweep)
        trials = list(dict.fromkeys([*(old.trials if old else ()), *asked]))
        record = SweepRecord(sweep.name, old.created if old else time.time(), tuple(requests), tuple(trials))
        plain: dict[str, Any] = {
            "format": RECORD_FORMAT,
            "name": record.name,
            "created": record.created,
            "resources": sweep.resources.model_dump(mode="json"),
            "requests": [request.model_dump(mode="json", exclude={"resources"}) for request in requests],
            "trials": trials,
        }
        write_json(path, plain)
    return record


def read_sweep(storage: Path, name: str) -> SweepRecord:
    """The record of sweep ``name``; its trials bear their present names.

    Raises:
        UnknownNameError: no sweep of that name was ever started on this storage.
        RecordError: the record is damaged, or was written by a later release.
    """
    path = _path(storage, name)
    if not is_plain_name(name):
        raise ConfigError(f"{name[:100]!r} is no sweep's name. Expected one such as paper_frozen.")
    try:
        plain = read_record(path, RECORD_FORMAT, _MIGRATIONS)
        requests = tuple(
            SweepSpec.model_validate({**request, "resources": plain["resources"]}) for request in plain["requests"]
        )
        trials = tuple(TrialFolder.find(storage, str(trial)).trial_id for trial in plain["trials"])
        return SweepRecord(str(plain["name"]), float(plain["created"]), requests, trials)
    except FileNotFoundError:
        known = [p.stem for p in (storage / "sweeps").glob("[!.]*.json")]
        raise UnknownNameError("sweep on this storage", name, known, f"Storage: {storage}.") from None
    except (ValueError, LookupError, TypeError, AttributeError, ValidationError) as error:
        raise RecordError(
            f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]}). Remove it and start "
            "the sweep again with its original overrides; finished trials are found by their ids."
        ) from error


def all_sweeps(storage: Path, unreadable: Callable[[CryobenchError], None]) -> list[SweepRecord]:
    """All sweeps of a storage, oldest first; ``unreadable`` is told of each record that cannot be read."""
    records = []
    for path in sorted((storage / "sweeps").glob("[!.]*.json")):
        try:
            records.append(read_sweep(storage, path.stem))
        except CryobenchError as error:
            unreadable(error)
    return sorted(records, key=lambda record: (record.created, record.name))


def _path(storage: Path, name: str) -> Path:
    return storage / "sweeps" / f"{name}.json"


def _with_resources(request: SweepSpec, resources: ResourceSpec) -> SweepSpec:
    return request.model_copy(update={"resources": resources})


def _trained(request: SweepSpec) -> SweepSpec:
    """The same request with every trial trained to its end: what is left says which trials it is about."""
    return request.model_copy(update={"scheduler": "none", "for_table": False})


def _resources_apart(plain: dict[str, Any]) -> dict[str, Any]:
    """Format 1 kept resources in each request; those that differed in nothing else are one request."""
    requests: list[dict[str, Any]] = []
    for request in plain["requests"]:
        rest = {key: value for key, value in request.items() if key != "resources"}
        if rest not in requests:
            requests.append(rest)
    return {**plain, "requests": requests, "resources": plain["requests"][-1]["resources"]}


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _resources_apart,
    2: lambda plain: plain,  # 3 may say how rates are searched and trials stopped early
}
