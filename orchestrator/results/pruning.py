"""What finished trials no longer need: weights of all but the best of each cell, and what interruptions left.

Nothing here concerns a trial's result, events, matrices or pictures, nor any trial that is not finished.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cryobench.conf.benchmark_editions import EDITIONS
from cryobench.conf.errors import CryobenchError
from cryobench.orchestrator.results.cells import Row
from cryobench.orchestrator.results.leaderboard import SCHEMA, leaderboard_row
from cryobench.orchestrator.results.ranking import result_tables
from cryobench.workers.record.events import Pruned
from cryobench.workers.record.folder import TrialFolder, all_trials
from cryobench.workers.record.mirror import Mirror

_WEIGHTS = "best-*.safetensors"
#: States to go on from, and files that a killed process or download left half-written.
_LEFTOVERS = ("latest-*.safetensors", ".*.tmp", ".*.fetched")

#: Bytes by file name.
Files = Mapping[str, int]


@dataclass(frozen=True)
class Removal:
    """Files of one finished trial that may go, with their bytes; ``weights`` names its best weights among them."""

    trial_id: str
    label: str
    files: Files
    weights: str | None

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


def kept_weights(storage: Path, keep: int) -> set[str]:
    """The trials of a storage whose best weights stay.

    Those that a table of any edition names in a cell, each seed of the chosen learning rate, and of each cell the
    ``keep`` best by validation. Also every trial whose record cannot be read.
    """
    rows: list[Row] = []
    kept: set[str] = set()
    for folder in all_trials(storage):
        try:
            ended = leaderboard_row(folder, "", None)
        except CryobenchError:
            kept.add(folder.trial_id)
            continue
        if ended is not None:
            rows.append(dict.fromkeys(SCHEMA.names) | ended)
    for edition in EDITIONS:
        for table in result_tables(rows, edition):
            kept |= {trial for system in table.rows for cell in system.cells.values() for trial in cell.trials}
    cells: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["best_val_miou"] is not None:
            cells[row["comparability"], row["encoder"], row["dataset"]].append(row)
    for found in cells.values():
        order = sorted(found, key=lambda row: (-row["best_val_miou"], row["lr"], row["seed"], row["trial_id"]))
        kept |= {row["trial_id"] for row in order[:keep]}
    return kept


def plan_pruning(storage: Path, trials: Iterable[str], files: Mapping[str, Files], keep: int) -> list[Removal]:
    """What may go of these trials, largest first.

    Args:
        storage: a storage, or the working copy of one; the trials of all of it say which are best.
        trials: the ids of those that are pruned.
        files: their files as they lie in the storage itself; see `files_here` and `files_in_store`.
        keep: of how many trials of each cell the best weights stay.
    """
    kept = kept_weights(storage, keep)
    removals = []
    for trial in trials:
        folder = TrialFolder(storage, trial)
        if not folder.state().finished:
            continue
        there = files.get(trial, {})
        names = {name for name in there if any(fnmatchcase(name, pattern) for pattern in _LEFTOVERS)}
        weights = max((name for name in there if fnmatchcase(name, _WEIGHTS)), default=None)
        if trial in kept:
            weights = None
        if weights is not None:
            names |= {name for name in there if fnmatchcase(name, _WEIGHTS)}
        if names:
            removals.append(Removal(trial, folder.spec().label, {n: there[n] for n in sorted(names)}, weights))
    return sorted(removals, key=lambda removal: (-removal.bytes, removal.trial_id))


def files_here(storage: Path, trials: Iterable[str]) -> dict[str, Files]:
    """The files of trials in a local storage."""
    return {
        trial: {path.name: path.stat().st_size for path in TrialFolder(storage, trial).path.glob("*") if path.is_file()}
        for trial in trials
    }


def files_in_store(mirror: Mirror) -> dict[str, Files]:
    """The files of all trials in an object store, a thousand a request."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for path, stored in mirror.store.files("trials").items():
        _, trial, *rest = path.split("/")
        if len(rest) == 1:
            found[trial][rest[0]] = stored.size
    return dict(found)


def prune(storage: Path, removal: Removal, mirror: Mirror | None) -> None:
    """Remove a trial's files. That its weights go is recorded first, so that whoever looks for them is told."""
    folder = TrialFolder(storage, removal.trial_id)
    if removal.weights is not None:
        folder.record(Pruned(file=removal.weights, bytes=removal.bytes))
    if mirror is None:
        for name in removal.files:
            (folder.path / name).unlink(missing_ok=True)
        return
    mirror.push_trial(storage, removal.trial_id)
    mirror.store.delete([f"trials/{removal.trial_id}/{name}" for name in removal.files])
