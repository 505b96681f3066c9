"""A storage on an object store, and its working copies on local disks.

Object stores can neither append nor rename, so a trial is written on its node's disk and whole files are copied to the
store at epoch boundaries, ``result.json`` last: what is there is always a trial that can be continued. The driver
keeps a working copy of the small files, from which plan, MLflow and leaderboard are made.

What is read is what is asked for: one listing tells what changed, and only that is fetched, several files at a time.
What is newer here is never overwritten by what a store holds since the two were one (`workers/record/stamps.py`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryobench.conf.errors import LeaseLostError
from cryobench.workers.record.folder import (
    CONFUSION,
    CONFUSION_PICTURE,
    EVENTS,
    MOVED,
    RESULT,
    SAMPLES_PICTURE,
    SPEC,
)
from cryobench.workers.record.lease import LEASE
from cryobench.workers.record.lease_files import StoreLeaseFile
from cryobench.workers.record.object_store import Stored, open_store
from cryobench.workers.record.stamps import Stamps, size_and_change

_POINTER = "state.json"
_SMALL = {SPEC, EVENTS, RESULT, CONFUSION, SAMPLES_PICTURE, CONFUSION_PICTURE, LEASE, MOVED}
#: Files that say of others that they are whole, in the order in which they may be believed.
_LAST = (_POINTER, EVENTS, RESULT)
#: Up to this many trials are listed one by one; for more, all that the store holds are listed, a thousand a request.
_FEW = 20
_AT_A_TIME = 16


@dataclass(frozen=True)
class _Fetch:
    """A file that is to be brought here."""

    name: str
    stored: Stored
    target: Path
    stamps: Stamps


class Mirror:
    """Whole files to and from ``url``, e.g. ``s3://bucket/cryobench``.

    ``fence`` is asked before anything is written to the store: it raises where the trial's lease is lost.

    Raises:
        ConfigError: from the constructor, for a URL that names no store.
        StorageError: from every method, if the store cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        self.store = open_store(url)
        self.url = self.store.url
        self.fence: Callable[[], None] = lambda: None
        self._lock = threading.RLock()

    def trial_lease(self, trial_id: str) -> StoreLeaseFile:
        """Where it stands who runs a trial."""
        return StoreLeaseFile(self.store, f"trials/{trial_id}/{LEASE}")

    def driver_lease(self, sweep: str) -> StoreLeaseFile:
        """Where it stands who drives a sweep."""
        return StoreLeaseFile(self.store, f"sweeps/drivers/{sweep}.json")

    def trials(self) -> set[str]:
        """The ids of all trials in the store."""
        return self.store.folders("trials")

    def finished(self) -> set[str]:
        """The ids of all trials in the store that have a result."""
        listed = (name.split("/") for name in self.store.files("trials"))
        return {parts[1] for parts in listed if len(parts) == 3 and parts[2] == RESULT}

    def pull(self, storage: Path) -> None:
        """Bring sweeps, leaderboard and the small files of all trials into the working copy ``storage``."""
        self.pull_projections(storage)
        self._pull_small(storage, self._by_trial("trials"))

    def pull_trials(self, storage: Path, trials: Collection[str]) -> None:
        """Bring the small files of these trials, as far as they changed since they were last brought."""
        wanted = set(trials)
        if len(wanted) > _FEW:
            found = self._by_trial("trials")
        else:
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                found = {}
                for part in pool.map(self._by_trial, [f"trials/{trial}" for trial in sorted(wanted)]):
                    found.update(part)
        self._pull_small(storage, {trial: files for trial, files in found.items() if trial in wanted})

    def pull_trial(self, storage: Path, trial_id: str, *, whole: bool) -> None:
        """Bring a trial's small files, or make the working copy of its folder one that can be run.

        ``whole`` is for the node that is about to run it and holds its lease. If nobody wrote to the store since this
        node did, what stands here is as new or newer, and stays. Else all of it becomes what the store holds.
        """
        if not whole:
            self.pull_trials(storage, [trial_id])
            return
        folder = storage / "trials" / trial_id
        found = self._by_trial(f"trials/{trial_id}").get(trial_id, {})
        found.pop(LEASE, None)
        stamps = Stamps(folder)
        if _nobody_else_wrote(stamps, found) and all((folder / name).exists() for name in _LAST if name in found):
            return
        for path in _files(folder):
            if path.name not in found:
                path.unlink()
        for name in stamps.names() - found.keys():
            stamps.forget(name)
        self._fetch(
            _Fetch(f"trials/{trial_id}/{name}", stored, folder / name, stamps)
            for name, stored in found.items()
            if not (stamps.same_in_store(name, stored) and stamps.same_here(name))
        )
        stamps.save()

    def push_trial(self, storage: Path, trial_id: str) -> None:
        """Bring to the store what changed in the working copy of a trial's folder, and remove what was removed here.

        Raises:
            LeaseLostError: another process has written the trial's state meanwhile; nothing more is touched.
        """
        folder, base = storage / "trials" / trial_id, f"trials/{trial_id}"
        with self._lock:
            stamps = Stamps(folder)
            here = {path.name for path in _files(folder)} - {LEASE}
            try:
                for name in sorted(here, key=_order):
                    self._push(f"{base}/{name}", folder / name, stamps)
                for name in sorted(stamps.names() - here - {LEASE}):
                    self.fence()
                    self.store.delete([f"{base}/{name}"])
                    stamps.forget(name)
            finally:
                stamps.save()

    def pull_projections(self, storage: Path) -> None:
        """Bring sweeps and leaderboard."""
        self.pull_sweeps(storage)
        self._pull_newer(storage, "leaderboard")

    def pull_sweeps(self, storage: Path) -> None:
        """Bring what was asked for under which name, and which MLflow run each trial has."""
        self._pull_newer(storage, "sweeps")

    def pull_table(self, storage: Path) -> None:
        """Bring the compacted leaderboard alone."""
        folder, name = storage / "leaderboard", "leaderboard.parquet"
        stamps = Stamps(folder)
        if (folder / name).exists() and not stamps.fresh and not stamps.same_here(name):
            return  # made here and not pushed yet
        with suppress(FileNotFoundError):
            self._fetch([_Fetch(f"leaderboard/{name}", Stored(0, ""), folder / name, stamps)])
            stamps.save()

    def push_projections(self, storage: Path) -> None:
        """Bring sweeps and leaderboard to the store."""
        with self._lock:
            for folder in (storage / "sweeps", storage / "leaderboard"):
                for part, names in _by_folder(folder).items():
                    stamps = Stamps(part)
                    try:
                        for name in names:
                            self._push((part / name).relative_to(storage).as_posix(), part / name, stamps)
                    finally:
                        stamps.save()

    def _by_trial(self, below: str) -> dict[str, dict[str, Stored]]:
        found: dict[str, dict[str, Stored]] = {}
        for path, stored in self.store.files(below).items():
            _, trial, *rest = path.split("/")
            if len(rest) == 1:
                found.setdefault(trial, {})[rest[0]] = stored
        return found

    def _pull_small(self, storage: Path, found: dict[str, dict[str, Stored]]) -> None:
        fetches, known = [], []
        for trial, files in found.items():
            folder = storage / "trials" / trial
            stamps = Stamps(folder)
            known.append(stamps)
            fetches += [
                _Fetch(f"trials/{trial}/{name}", stored, folder / name, stamps)
                for name, stored in files.items()
                if name in _SMALL and not (stamps.same_in_store(name, stored) and (folder / name).exists())
            ]
        try:
            self._fetch(fetches)
        finally:
            for stamps in known:
                stamps.save()

    def _pull_newer(self, storage: Path, below: str) -> None:
        """Bring what changed in the store, and was not changed or made here."""
        folders: dict[Path, Stamps] = {}
        fetches = []
        for path, stored in self.store.files(below).items():
            target = storage / path
            if path.startswith("sweeps/drivers/"):
                continue
            stamps = folders.setdefault(target.parent, Stamps(target.parent))
            newer_here = target.exists() and not stamps.fresh and not stamps.same_here(target.name)
            if not newer_here and not (stamps.same_in_store(target.name, stored) and target.exists()):
                fetches.append(_Fetch(path, stored, target, stamps))
        try:
            self._fetch(fetches)
        finally:
            for stamps in folders.values():
                stamps.save()

    def _fetch(self, fetches: Iterable[_Fetch]) -> None:
        """Bring files here, several at a time; one that was removed since it was listed is left out."""

        def bring(fetch: _Fetch) -> None:
            fetch.target.parent.mkdir(parents=True, exist_ok=True)
            temporary = fetch.target.with_name(f".{fetch.target.name}.{os.getpid()}.fetched")
            try:
                stored = self.store.fetch(fetch.name, temporary)
            except FileNotFoundError:
                temporary.unlink(missing_ok=True)
                return
            here = size_and_change(temporary)
            temporary.replace(fetch.target)
            if here:
                fetch.stamps.note(fetch.target.name, stored, here)

        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            for _ in pool.map(bring, list(fetches)):
                pass

    def _push(self, name: str, path: Path, stamps: Stamps) -> None:
        here = size_and_change(path)
        if here is None or stamps.same_here(path.name):
            return
        self.fence()
        stored: Stored | None
        if path.name == _POINTER and self.store.unconditional is None:
            stored = self.store.write_if(name, path.read_bytes(), stamps.stored(path.name))
            if stored is None:
                raise LeaseLostError(
                    f"{self.url}: {name} was written by another process, which runs this trial now. Nothing more is "
                    "written by this one."
                )
        else:
            stored = self.store.write(name, path)
        stamps.note(path.name, stored, here)


def _nobody_else_wrote(stamps: Stamps, found: dict[str, Stored]) -> bool:
    if stamps.fresh or not stamps.names() <= found.keys() | {LEASE}:
        return False
    return all(stamps.same_in_store(name, stored) for name, stored in found.items())


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.is_file() and not p.name.startswith("."))


def _by_folder(folder: Path) -> dict[Path, list[str]]:
    """The files below a folder, hidden ones and leases of drivers left out."""
    found: dict[Path, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.parent != folder / "drivers":
            found.setdefault(path.parent, []).append(path.name)
    return found


def _order(name: str) -> tuple[int, str]:
    return (_LAST.index(name) + 1 if name in _LAST else 0, name)
