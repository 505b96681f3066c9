"""MLflow: one experiment a sweep, one run a trial under a parent run. A projection of the trial folders.

Every write is idempotent: a trial's run is found by its id, metrics carry the time of their event, and what was written
is remembered in a `RunBook`, so writing twice changes nothing. Only the driver's process writes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryobench.conf.errors import TrackingError
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.formatting import masked
from cryobench.orchestrator.results.run_book import RunBook, TrackedRun
from cryobench.orchestrator.results.run_content import epoch_metrics, params_of, result_metrics, result_tags, tags_of
from cryobench.orchestrator.results.system_metrics import load_metrics, loads_of
from cryobench.workers.record.events import Event
from cryobench.workers.record.folder import CONFUSION_PICTURE, RESULT, SAMPLES_PICTURE, SPEC, TrialFolder
from cryobench.workers.record.result import TrialResult

_EPOCH, _WRITTEN, _ROLE = "cryobench.epoch", "cryobench.result", "cryobench.role"
_LOADS = "cryobench.loads"
_BATCH = 900
#: What MLflow answers about one run; any other error is about the server.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE", "MALFORMED_REQUEST"}
_NETWORK = (ConnectionError, TimeoutError)
_GONE = "RESOURCE_DOES_NOT_EXIST"


class RefusedError(TrackingError):
    """MLflow is there and refuses one trial; all others can be written."""


def default_uri(storage: Path) -> str:
    """The embedded store: SQLite under the storage folder."""
    return f"sqlite:///{storage / 'mlflow.db'}"


@dataclass
class Tracker:
    """One sweep's experiment.

    Raises:
        RefusedError: from `project`, if MLflow refuses this trial.
        TrackingError: from every method, if the server or database cannot be reached or refuses altogether.
    """

    uri: str
    storage: Path
    sweep: str
    _book: RunBook = field(init=False)

    def __post_init__(self) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of every table it makes
        from mlflow import MlflowClient

        with self._explained():
            self._client: Any = MlflowClient(tracking_uri=self.uri)
            experiment = self._find_experiment()
            self._experiment = str(experiment.experiment_id)
            self._book = RunBook.open(self.storage, self.sweep, self.uri, self._experiment, experiment.creation_time)
            self._parent = self._find_parent()

    def project(self, folder: TrialFolder) -> str | None:
        """Bring the trial's run up to what its folder says; its id, or None for a trial that was never begun."""
        if folder.state().status == "pending":
            return None
        with self._explained(folder.trial_id):
            try:
                return self._project(folder)
            except Exception as error:
                if _code(error) != _GONE and "active' state" not in str(error):
                    raise
            self._book.forget(folder.trial_id)  # somebody deleted the run: it comes back
            return self._project(folder)

    def finish(self, counts: Mapping[str, int]) -> None:
        """Note the sweep's counts on the parent run and end it for now."""
        with self._explained():
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
        with self._explained():
            self._book.clear()
            superfluous = []
            for run in sorted(self._all_runs(), key=lambda run: (run.info.start_time, run.info.run_id)):
                trial = run.data.tags.get("trial_id")
                if trial is None:
                    continue
                if trial in known and self._book.get(trial) is None:
                    self._book.put(trial, _tracked(run))
                else:
                    superfluous.append(run.info.run_id)
            for run_id in superfluous:
                self._client.delete_run(run_id)
            return len(superfluous)

    def _project(self, folder: TrialFolder) -> str:
        trial, state, events = folder.trial_id, folder.state(), folder.events()
        run = (
            self._book.get(trial)
            or self._look_up(trial)
            or self._create(trial, folder.spec(), _milliseconds(events[0]))
        )
        run = self._log_loads(self._log_epochs(run, folder), events)
        result = folder.result()
        written = hashlib.sha256((folder.path / RESULT).read_bytes()).hexdigest()[:16] if result else ""
        if result and run.written != written:
            run = self._log_result(run, folder, result, _milliseconds(events[-1]), written)
        elif not result and run.status != state.status:
            self._client.set_tag(run.run_id, "status", state.status)
            if state.status == "failed":
                self._client.set_tag(run.run_id, "failure", state.kind or "")
                self._client.set_tag(run.run_id, "mlflow.note.content", state.message or "")
                self._client.set_terminated(run.run_id, "FAILED", end_time=_milliseconds(events[-1]))
            else:
                self._client.update_run(run.run_id, status="RUNNING")
        self._book.put(trial, run.with_status(state.status))
        return run.run_id

    def _find_experiment(self) -> Any:
        found = self._client.get_experiment_by_name(self.sweep)
        if found is None:
            local = self.uri.startswith(("sqlite:", "file:"))
            where = (self.storage / "mlartifacts" / self.sweep).as_uri() if local else None
            return self._client.get_experiment(self._client.create_experiment(self.sweep, artifact_location=where))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return found

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

    def _look_up(self, trial: str) -> TrackedRun | None:
        found = self._client.search_runs(
            [self._experiment], f"tags.trial_id = '{trial}'", max_results=1, order_by=["attributes.start_time ASC"]
        )
        return _tracked(found[0]) if found else None

    def _all_runs(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, trial: str, spec: TrialSpec, start: int) -> TrackedRun:
        from mlflow.entities import Param

        tags = {**tags_of(trial, spec), "mlflow.parentRunId": self._parent}
        name = f"{spec.encoder.name} {spec.dataset.name} {spec.regime.name} lr={spec.lr:g}"
        created = self._client.create_run(self._experiment, start_time=start, tags=tags, run_name=name)
        run = TrackedRun(str(created.info.run_id), status="begun")
        self._book.put(trial, run)
        params = [Param(key, value) for key, value in params_of(spec).items()]
        self._client.log_batch(run.run_id, params=params)
        return run

    def _log_epochs(self, run: TrackedRun, folder: TrialFolder) -> TrackedRun:
        from mlflow.entities import Metric, RunTag

        new = [event for event in folder.epochs() if event.epoch > run.epoch]
        if not new:
            return run
        metrics = [
            Metric(name, value, _milliseconds(event), event.epoch)
            for event in new
            for name, value in epoch_metrics(event).items()
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run.run_id, metrics=metrics[start : start + _BATCH])
        run = run.with_epoch(new[-1].epoch)
        self._client.log_batch(run.run_id, tags=[RunTag(_EPOCH, str(run.epoch))])
        return run

    def _log_loads(self, run: TrackedRun, events: list[Event]) -> TrackedRun:
        from mlflow.entities import Metric, RunTag

        samples = loads_of(events)
        new = samples[run.loads :]
        if not new:
            return run
        metrics = [Metric(*values) for values in load_metrics(new, first=run.loads)]
        tags = [RunTag("node", new[-1].node), RunTag(_LOADS, str(len(samples)))]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run.run_id, metrics=metrics[start : start + _BATCH])
        self._client.log_batch(run.run_id, tags=tags)
        return run.with_loads(len(samples))

    def _log_result(
        self, run: TrackedRun, folder: TrialFolder, result: TrialResult, ended: int, written: str
    ) -> TrackedRun:
        from mlflow.entities import Metric, RunTag

        # At step 0 the UI draws a value that a run has once as a bar, and the bars of all runs side by side.
        metrics = [Metric(name, float(value), ended, 0) for name, value in result_metrics(result).items()]
        self._client.log_batch(run.run_id, metrics=metrics)
        for name in (SPEC, RESULT, SAMPLES_PICTURE, CONFUSION_PICTURE):
            if (folder.path / name).exists():
                self._client.log_artifact(run.run_id, str(folder.path / name))
        tags = {**result_tags(result), _WRITTEN: written}
        self._client.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self._client.set_terminated(run.run_id, "FINISHED", end_time=ended)
        return run.with_result(written)

    @contextmanager
    def _explained(self, trial: str | None = None) -> Iterator[None]:
        """Errors of MLflow and of its database in words of ours."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            if trial is not None and isinstance(error, OSError) and not isinstance(error, _NETWORK):
                raise  # a file of this trial, or the disk: nothing that the next trial need share
            if trial is not None and _code(error) in _REFUSALS:
                raise RefusedError(
                    f"MLflow refuses trial {trial} ({_in_short(error)}). Its result is safe in its folder and in the "
                    "leaderboard; all other trials are written."
                ) from error
            raise _unreachable(self.uri, error) from error
        except Exception as error:
            if type(error).__module__.startswith("sqlalchemy") or (trial is None and isinstance(error, ValueError)):
                raise _unreachable(self.uri, error) from error
            raise


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


def _tracked(run: Any) -> TrackedRun:
    tags = run.data.tags
    return TrackedRun(
        str(run.info.run_id),
        int(tags.get(_EPOCH, 0)),
        str(tags.get(_WRITTEN, "")),
        str(tags.get("status", "")),
        int(tags.get(_LOADS, 0)),
    )


def _milliseconds(event: Event) -> int:
    return int(event.time * 1000)


def _code(error: BaseException) -> str:
    return str(getattr(error, "error_code", ""))


def _in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _unreachable(uri: str, error: BaseException) -> TrackingError:
    return TrackingError(
        f"MLflow at {masked(uri)} cannot be used ({masked(_in_short(error), uri)}). Results are safe "
        "in the trial folders: start the server or give another --tracking-uri (or --tracking-uri none), and run "
        "cryobench sync to bring MLflow up to date."
    )
