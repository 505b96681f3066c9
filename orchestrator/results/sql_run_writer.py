"""Writes updates of many runs in one transaction, where MLflow's store is a database that this process can reach.

MLflow's own client takes ten transactions and 130 ms of CPU time a trial of 80 epochs, most of it in objects of its
ORM; the same rows in one transaction for fifty trials take a tenth. The tables are written as MLflow's client writes
them, which a test holds the two to; where they are not those that are known here, or a value is one that MLflow might
refuse or change, the client is used.
"""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError

from cryobench.orchestrator.results.run_book import TrackedRun
from cryobench.orchestrator.results.run_update import EPOCH, WRITTEN, RunMetric, RunUpdate, tracked_run
from cryobench.orchestrator.results.run_writer import FoundRun, RunWriter
from cryobench.orchestrator.results.tracking_errors import RunGoneError, explained

#: The tables as MLflow 3 has had them throughout; others are left to MLflow itself.
_COLUMNS = {
    "runs": "run_uuid name source_type source_name entry_point_name user_id status start_time end_time deleted_time "
    "source_version lifecycle_stage artifact_uri experiment_id",
    "params": "key value run_uuid",
    "tags": "key value run_uuid",
    "metrics": "key value timestamp step is_nan run_uuid",
    "latest_metrics": "key value timestamp step is_nan run_uuid",
}
_DATABASE = re.compile(r"(sqlite|postgresql)(\+\w+)?://")
#: Names that MLflow takes as they are, and lengths that no release of it cuts.
_PLAIN = re.compile(r"[\w.\- :][\w.\- :/]{0,199}")
_PARAM_LENGTH, _TAG_LENGTH = 500, 5000
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class SqlRunWriter:
    """Runs of one experiment, in batches."""

    def __init__(self, engine: sa.Engine, uri: str, experiment: str, artifacts: str, fallback: RunWriter) -> None:
        self._engine, self._uri, self._experiment, self._artifacts = engine, uri, int(experiment), artifacts
        self._fallback = fallback
        metadata = sa.MetaData()
        metadata.reflect(engine, only=list(_COLUMNS), resolve_fks=False)
        self._tables = metadata.tables
        self._insert = _INSERT[engine.dialect.name]

    @classmethod
    def of(cls, uri: str, experiment: str, artifacts: str, fallback: RunWriter) -> SqlRunWriter | None:
        """The writer for MLflow's database at ``uri``; None where only MLflow itself can write it.

        Args:
            uri: MLflow's tracking URI.
            experiment: its id.
            artifacts: its artifact location; only local folders are written here.
            fallback: writes what this one leaves to MLflow.

        Raises:
            TrackingError: the database cannot be reached.
        """
        if not _DATABASE.match(uri) or not artifacts.startswith("file:") or re.search(r"[?#]", artifacts):
            return None
        arguments = {"timeout": 30} if uri.startswith("sqlite") else {}
        with explained(uri):
            engine = sa.create_engine(uri, connect_args=arguments, pool_pre_ping=True)
            try:
                writer = cls(engine, uri, experiment, artifacts, fallback)
            except InvalidRequestError:
                return None  # no such tables here: MLflow is at work in another database than this address says
        found = {name: {column.name for column in table.columns} for name, table in writer._tables.items()}
        if found != {name: set(columns.split()) for name, columns in _COLUMNS.items()}:
            logging.getLogger(__name__).info("MLflow's tables are others than expected; its client writes them.")
            return None
        return writer

    def find(self, trials: Collection[str]) -> dict[str, TrackedRun]:
        """See `RunWriter.find`."""
        tags = self._tables["tags"]
        asked = sa.select(tags.c.run_uuid).where(tags.c.key == "trial_id", tags.c.value.in_(list(trials)))
        found: dict[str, TrackedRun] = {}
        for one in sorted(self._runs(asked), key=lambda one: (one.start, one.run.run_id)):
            if one.trial is not None:
                found.setdefault(one.trial, one.run)
        return found

    def all_runs(self) -> Iterator[FoundRun]:
        """See `RunWriter.all_runs`."""
        yield from self._runs(None)

    def write(self, updates: Sequence[RunUpdate]) -> dict[str, str | Exception]:
        """See `RunWriter.write`."""
        done: dict[str, str | Exception] = {}
        ours = [update for update in updates if _is_plain(update)]
        run_ids = {update.trial: update.run.run_id or uuid.uuid4().hex for update in ours}
        for update in ours:
            try:  # files first: the tags that say that all is written come with the transaction
                self._copy(update, run_ids[update.trial])
            except OSError as error:
                done[update.trial] = error
        ours = [update for update in ours if update.trial not in done]
        try:
            with self._engine.begin() as connection:
                gone = self._gone(connection, [update.run.run_id for update in ours if update.new is None])
                ours = [update for update in ours if update.run.run_id not in gone]
                self._write(connection, [(run_ids[update.trial], update) for update in ours])
            done |= {update.trial: run_ids[update.trial] for update in ours}
            missing = (update for update in updates if update.new is None and update.run.run_id in gone)
            for update in missing:
                done[update.trial] = RunGoneError(f"The MLflow run of trial {update.trial} was deleted.")
        except SQLAlchemyError:
            pass  # nothing is written: MLflow's own client tries each, and says what is wrong
        return done | self._fallback.write([update for update in updates if update.trial not in done])

    def _runs(self, asked: sa.Select[Any] | None) -> list[FoundRun]:
        runs, tags = self._tables["runs"], self._tables["tags"]
        names = ("trial_id", EPOCH, WRITTEN, "status")
        query = (
            sa.select(runs.c.run_uuid, runs.c.start_time, tags.c.key, tags.c.value)
            .join_from(runs, tags, sa.and_(tags.c.run_uuid == runs.c.run_uuid, tags.c.key.in_(names)), isouter=True)
            .where(runs.c.experiment_id == self._experiment, runs.c.lifecycle_stage == "active")
        )
        if asked is not None:
            query = query.where(runs.c.run_uuid.in_(asked))
        with explained(self._uri), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found: dict[tuple[str, int], dict[str, str]] = {}
        for run_id, start, key, value in rows:
            found.setdefault((run_id, start or 0), {})[key] = value
        return [
            FoundRun(tags.get("trial_id"), start, tracked_run(run_id, tags)) for (run_id, start), tags in found.items()
        ]

    def _gone(self, connection: sa.Connection, run_ids: list[str]) -> set[str]:
        """Those among ``run_ids`` that were deleted, with the database held from here on."""
        runs = self._tables["runs"]
        active = sa.and_(runs.c.run_uuid.in_(run_ids), runs.c.lifecycle_stage == "active")
        # Written before it is read: of two that had only read, SQLite lets neither write.
        connection.execute(sa.update(runs).where(active).values(status=runs.c.status))
        return set(run_ids) - set(connection.scalars(sa.select(runs.c.run_uuid).where(active)))

    def _write(self, connection: sa.Connection, updates: list[tuple[str, RunUpdate]]) -> None:
        runs, params, tags = (self._tables[name] for name in ("runs", "params", "tags"))
        metrics, latest = self._tables["metrics"], self._tables["latest_metrics"]

        def put(statement: Any, rows: list[dict[str, Any]]) -> None:
            if rows:
                connection.execute(statement, rows)

        put(sa.insert(runs), [self._run(run_id, update) for run_id, update in updates if update.new])
        for run_id, update in updates:
            if update.status is not None and update.new is None:
                ended = {} if update.ended is None else {"end_time": update.ended}
                connection.execute(
                    sa.update(runs).where(runs.c.run_uuid == run_id).values(status=update.status, **ended)
                )
        rows = [{"run_uuid": run_id, "key": k, "value": v} for run_id, u in updates for k, v in u.params.items()]
        put(self._insert(params).on_conflict_do_nothing(), rows)
        rows = [{"run_uuid": run_id, "key": k, "value": v} for run_id, u in updates for k, v in _tags(u).items()]
        insert, keys = self._insert(tags), ["key", "run_uuid"]
        put(insert.on_conflict_do_update(index_elements=keys, set_={"value": insert.excluded.value}), rows)
        rows = [_row(run_id, metric) for run_id, update in updates for metric in update.metrics]
        put(self._insert(metrics).on_conflict_do_nothing(), rows)
        rows = [_row(run_id, metric) for run_id, update in updates for metric in _latest(update.metrics)]
        insert = self._insert(latest)
        new, old = insert.excluded, latest.c
        put(
            insert.on_conflict_do_update(
                index_elements=keys,
                set_={name: new[name] for name in ("value", "timestamp", "step", "is_nan")},
                where=sa.tuple_(new.step, new.timestamp, new.value) > sa.tuple_(old.step, old.timestamp, old.value),
            ),
            rows,
        )

    def _run(self, run_id: str, update: RunUpdate) -> dict[str, Any]:
        assert update.new is not None
        return {
            "run_uuid": run_id,
            "name": update.new.name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "unknown",
            "status": update.status or "RUNNING",
            "start_time": update.new.start,
            "end_time": update.ended,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"{self._artifacts.rstrip('/')}/{run_id}/artifacts",
            "experiment_id": self._experiment,
        }

    def _copy(self, update: RunUpdate, run_id: str) -> None:
        if update.artifacts:
            folder = Path(url2pathname(urlsplit(self._artifacts).path)) / run_id / "artifacts"
            folder.mkdir(parents=True, exist_ok=True)
            for path in update.artifacts:
                shutil.copyfile(path, folder / path.name)


def _tags(update: RunUpdate) -> dict[str, str]:
    if update.new is None:
        return update.tags
    return {**update.new.tags, "mlflow.runName": update.new.name, **update.tags}


def _row(run_id: str, metric: RunMetric) -> dict[str, Any]:
    name, value, time, step = metric
    return {"run_uuid": run_id, "key": name, "value": value, "timestamp": time, "step": step, "is_nan": False}


def _latest(metrics: tuple[RunMetric, ...]) -> list[RunMetric]:
    """The last value of each name, by step, time and value, as MLflow orders them."""
    last: dict[str, RunMetric] = {}
    for metric in metrics:
        before = last.get(metric.name)
        if before is None or (metric.step, metric.time, metric.value) > (before.step, before.time, before.value):
            last[metric.name] = metric
    return list(last.values())


def _is_plain(update: RunUpdate) -> bool:
    """Whether MLflow would take all of it as it is."""
    tags = _tags(update)
    names = {metric.name for metric in update.metrics} | update.params.keys() | tags.keys()
    return (
        all(_PLAIN.fullmatch(name) and ".." not in name and "//" not in name for name in names)
        and all(len(value) <= _PARAM_LENGTH for value in update.params.values())
        and all(len(value) <= _TAG_LENGTH for value in tags.values())
        and all(abs(metric.value) < 1e300 for metric in update.metrics)
    )
