"""MLflow: one experiment a sweep, one run a trial under a parent run. A projection of the trial folders.

Every write is idempotent: a trial's run is found by its id, metrics carry the time of their event, and what was written
is remembered in a `RunBook`, so writing twice changes nothing. Only the driver's process writes, many trials at a time.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryobench.conf.errors import TrackingError
from cryobench.orchestrator.results.experiment import own_experiment, storage_id
from cryobench.orchestrator.results.reading import TrialReading
from cryobench.orchestrator.results.run_book import RunBook
from cryobench.orchestrator.results.run_update import RunUpdate, update_of
from cryobench.orchestrator.results.run_writer import ClientRunWriter, RunWriter
from cryobench.orchestrator.results.sql_run_writer import SqlRunWriter
from cryobench.orchestrator.results.tracking_errors import RunGoneError, explained

_ROLE = "cryobench.role"


def default_uri(storage: Path) -> str:
    """The embedded store: SQLite under the storage folder."""
    return f"sqlite:///{storage / 'mlflow.db'}"


def _require_file(uri: str) -> None:
    """Look at an embedded database's file first: MLflow tries for minutes to open what is none."""
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and path.exists() and not path.is_file():
        raise IsADirectoryError(f"{path} is no file")


@dataclass
class Tracker:
    """One sweep's experiment.

    Args:
        uri: MLflow's tracking URI.
        storage: the storage, or its working copy.
        sweep: the sweep's name.
        url: the object store that ``storage`` is a copy of.

    Raises:
        TrackingError: from the constructor and every method but `project`, if the server or database cannot be reached
            or refuses altogether.
    """

    uri: str
    storage: Path
    sweep: str
    url: str | None = None
    #: The experiment's name, which is the sweep's unless that one belongs to another storage.
    experiment: str = field(init=False)
    _book: RunBook = field(init=False)
    _writer: RunWriter = field(init=False)

    def __post_init__(self) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of every table it makes
        from mlflow import MlflowClient

        with explained(self.uri):
            _require_file(self.uri)
            self._client: Any = MlflowClient(tracking_uri=self.uri)
            experiment = self._find_experiment()
            self.experiment = str(experiment.name)
            self._experiment = str(experiment.experiment_id)
            self._book = RunBook.open(self.storage, self.sweep, self.uri, self._experiment, experiment.creation_time)
            self._parent = self._find_parent()
        client = ClientRunWriter(self._client, self.uri, self._experiment)
        location = str(experiment.artifact_location)
        self._writer = SqlRunWriter.of(self.uri, self._experiment, location, client) or client

    def project(self, trials: Sequence[TrialReading]) -> dict[str, str | Exception]:
        """Bring the runs of ``trials``, which were all begun, up to what their folders say.

        Returns:
            For each the id of its run, or what kept it from being written: a RefusedError where MLflow refuses this
            trial, any other TrackingError where MLflow cannot be used, whatever else is wrong with its folder.
        """
        left = {trial.trial_id: trial for trial in trials}
        done: dict[str, str | Exception] = {}
        for _ in range(2):
            try:
                found = self._write(list(left.values()))
            except TrackingError as error:
                return {**done, **dict.fromkeys(left, error)}
            done |= found
            left = {trial: left[trial] for trial, outcome in found.items() if isinstance(outcome, RunGoneError)}
            for trial in left:  # somebody deleted the run: it comes back
                self._book.forget(trial)
            if not left:
                break
        return done

    def finish(self, counts: Mapping[str, int]) -> None:
        """Note the sweep's counts on the parent run and end it for now."""
        with explained(self.uri):
            parent = self._client.get_run(self._parent)
            for name, count in counts.items():
                if parent.data.tags.get(f"trials.{name}") != str(count):
                    self._client.set_tag(self._parent, f"trials.{name}", str(count))
            if parent.info.status == "RUNNING":
                self._client.set_terminated(self._parent, "FINISHED")
        self._book.save()

    def save(self) -> None:
        """Remember which runs there are, so that the next start need not ask for them."""
        self._book.save()

    def take_stock(self, known: Collection[str]) -> int:
        """Read all runs of the experiment anew, and delete those of trials that are not ``known`` and second ones.

        Returns:
            How many were deleted.
        """
        self._book.clear()
        superfluous = []
        for found in sorted(self._writer.all_runs(), key=lambda found: (found.start, found.run.run_id)):
            if found.trial is None:
                continue
            if found.trial in known and self._book.get(found.trial) is None:
                self._book.put(found.trial, found.run)
            else:
                superfluous.append(found.run.run_id)
        with explained(self.uri):
            for run_id in superfluous:
                self._client.delete_run(run_id)
        return len(superfluous)

    def _write(self, trials: Sequence[TrialReading]) -> dict[str, str | Exception]:
        done: dict[str, str | Exception] = {}
        updates: list[RunUpdate] = []
        found = self._writer.find([t.trial_id for t in trials if self._book.get(t.trial_id) is None])
        for trial in trials:
            known = self._book.get(trial.trial_id) or found.get(trial.trial_id)
            try:
                update = update_of(trial, known, self._parent, whole=trial.trial_id in found)
            except Exception as error:  # whatever is wrong with this folder, the others are written
                done[trial.trial_id] = error
                continue
            if update.empty:
                self._book.put(update.trial, update.run)
                done[update.trial] = update.run.run_id
            else:
                updates.append(update)
        written = self._writer.write(updates)
        for update in updates:
            outcome = done[update.trial] = written[update.trial]
            if isinstance(outcome, str):
                self._book.put(update.trial, update.known_as(outcome))
        return done

    def _find_experiment(self) -> Any:
        # Beside a database nobody keeps artifacts for us; MLflow would put them below the current folder.
        local = re.match(r"(sqlite|postgresql|mysql|mssql)\b|file:", self.uri)
        where = (self.storage / "mlartifacts" / self.sweep).as_uri() if local else None
        embedded = self.uri == default_uri(self.storage)
        return own_experiment(self._client, self.sweep, storage_id(self.storage, self.url), where, embedded=embedded)

    def _find_parent(self) -> str:
        if self._book.parent is not None:
            return self._book.parent
        found = self._client.search_runs([self._experiment], f"tags.`{_ROLE}` = 'sweep'", max_results=1)
        run = (
            found[0]
            if found
            else self._client.create_run(
                self._experiment, run_name=f"sweep {self.sweep}", tags={_ROLE: "sweep", "sweep": self.sweep}
            )
        )
        parent = self._book.parent = str(run.info.run_id)
        return parent


def mend_artifact_locations(storage: Path, tell: Callable[[str], None]) -> None:
    """Let the embedded MLflow find its artifacts again after the storage was moved or copied.

    MLflow keeps whole paths, and offers no call to change them; what is corrected here are the two columns that hold
    them, in the database that this storage owns.
    """
    import sqlite3
    from contextlib import closing

    path = storage / "mlflow.db"
    if not path.exists():
        return
    root = (storage / "mlartifacts").as_uri()
    mended = 0
    try:
        with closing(sqlite3.connect(path, timeout=30)) as database, database:
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                for (found,) in database.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
                    before, marker, rest = str(found or "").partition("/mlartifacts/")
                    if marker and before.startswith("file:") and f"{before}/mlartifacts" != root:
                        query = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
                        mended += database.execute(query, (f"{root}/{rest}", found)).rowcount
    except sqlite3.Error:
        return  # not a database, or a new one without tables: opening it through MLflow says what is wrong
    if mended:
        tell(
            f"The storage was moved or copied: {mended} runs and experiments in MLflow find their files in {root} now."
        )
