"""Writes updates of runs through MLflow's client: to a server, or to any store that MLflow knows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cryobench.conf.errors import TrackingError
from cryobench.orchestrator.results.run_book import TrackedRun
from cryobench.orchestrator.results.run_update import RunUpdate, tracked_run
from cryobench.orchestrator.results.tracking_errors import RefusedError, RunGoneError, explained

#: What MLflow takes in one request: values in all, and parameters or tags.
_VALUES, _NAMES = 1000, 100


@dataclass(frozen=True)
class FoundRun:
    """A run as MLflow has it; ``trial`` None for one that is no trial's."""

    trial: str | None
    start: int
    run: TrackedRun


class RunWriter(Protocol):
    """Reads and writes the runs of one experiment."""

    def find(self, trials: Collection[str]) -> dict[str, TrackedRun]:
        """The runs of ``trials``, of several of one trial the oldest.

        Raises:
            TrackingError: MLflow cannot be reached.
        """

    def all_runs(self) -> Iterator[FoundRun]:
        """All runs of the experiment that were not deleted.

        Raises:
            TrackingError: MLflow cannot be reached.
        """

    def write(self, updates: Sequence[RunUpdate]) -> dict[str, str | Exception]:
        """The run id of each trial, or what went wrong with it: RefusedError and RunGoneError are about this trial
        alone, any other TrackingError is about all that follow it.
        """


@dataclass
class ClientRunWriter:
    """Run after run through an ``MlflowClient``."""

    client: Any
    uri: str
    experiment: str

    def find(self, trials: Collection[str]) -> dict[str, TrackedRun]:
        """See `RunWriter.find`: a search by tag for each."""
        found = {}
        for trial in trials:
            with explained(self.uri, trial):
                runs = self.client.search_runs(
                    [self.experiment],
                    f"tags.trial_id = '{trial}'",
                    max_results=1,
                    order_by=["attributes.start_time ASC"],
                )
            if runs:
                found[trial] = tracked_run(str(runs[0].info.run_id), runs[0].data.tags)
        return found

    def all_runs(self) -> Iterator[FoundRun]:
        """See `RunWriter.all_runs`."""
        token = None
        while True:
            with explained(self.uri):
                page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            for run in page:
                tags, info = run.data.tags, run.info
                yield FoundRun(tags.get("trial_id"), info.start_time, tracked_run(str(info.run_id), tags))
            token = page.token
            if not token:
                return

    def write(self, updates: Sequence[RunUpdate]) -> dict[str, str | Exception]:
        """See `RunWriter.write`."""
        done: dict[str, str | Exception] = {}
        gone: TrackingError | None = None
        for update in updates:
            if gone is not None:
                done[update.trial] = gone
                continue
            try:
                with explained(self.uri, update.trial):
                    done[update.trial] = self._write_one(update)
            except TrackingError as error:
                done[update.trial] = error
                if not isinstance(error, RefusedError | RunGoneError):
                    gone = error
            except Exception as error:  # a file of this trial: it is told with it
                done[update.trial] = error
        return done

    def _write_one(self, update: RunUpdate) -> str:
        from mlflow.entities import Metric, Param, RunTag

        run_id, new = update.run.run_id, update.new
        if new is not None:
            created = self.client.create_run(self.experiment, start_time=new.start, tags=new.tags, run_name=new.name)
            run_id = str(created.info.run_id)
        for path in update.artifacts:
            self.client.log_artifact(run_id, str(path))
        params = [Param(key, value) for key, value in update.params.items()]
        tags = [RunTag(key, value) for key, value in update.tags.items()]
        metrics = [Metric(*metric) for metric in update.metrics]
        room = _VALUES - len(params) - len(tags)
        while len(metrics) > room or len(params) > _NAMES:  # tags go with the last part: they say that all is written
            self.client.log_batch(run_id, metrics=metrics[:room], params=params[:_NAMES])
            metrics, params = metrics[room:], params[_NAMES:]
        if metrics or params or tags:
            self.client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
        if update.ended is not None:
            self.client.set_terminated(run_id, update.status, end_time=update.ended)
        elif update.status is not None:
            self.client.update_run(run_id, status=update.status)
        return run_id
