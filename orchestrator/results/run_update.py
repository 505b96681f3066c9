"""What an MLflow run lacks of what its trial's folder says: computed from both, written by a run writer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from cryobench.conf.errors import RecordError
from cryobench.orchestrator.results.reading import TrialReading
from cryobench.orchestrator.results.run_book import TrackedRun
from cryobench.orchestrator.results.run_content import epoch_metrics, params_of, result_metrics, result_tags, tags_of
from cryobench.orchestrator.results.system_metrics import load_metrics, loads_of
from cryobench.workers.record.folder import CONFUSION_PICTURE, RESULT, SAMPLES_PICTURE, SPEC

#: Tags that say how far a run is written.
EPOCH, WRITTEN, LOADS = "cryobench.epoch", "cryobench.result", "cryobench.loads"


class RunMetric(NamedTuple):
    """One value of a metric; ``time`` in milliseconds since 1970."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class NewRun:
    """What a run has from its start; ``start`` in milliseconds since 1970."""

    name: str
    start: int
    tags: dict[str, str]


@dataclass(frozen=True)
class RunUpdate:
    """What is to be written of one trial.

    ``run`` is the run as it will be known after it; its ``run_id`` is empty where the run, ``new``, is made first.
    ``status`` None leaves the run's own as it is, ``ended`` (milliseconds since 1970) goes with one that ends it.
    """

    trial: str
    run: TrackedRun
    new: NewRun | None
    params: dict[str, str]
    metrics: tuple[RunMetric, ...]
    artifacts: tuple[Path, ...]
    tags: dict[str, str]
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"] | None = None
    ended: int | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.new or self.params or self.metrics or self.artifacts or self.tags or self.status)

    def known_as(self, run_id: str) -> TrackedRun:
        """The run after this update."""
        return replace(self.run, run_id=run_id)


def update_of(trial: TrialReading, known: TrackedRun | None, parent: str, *, whole: bool = False) -> RunUpdate:
    """What MLflow lacks.

    Args:
        trial: a trial that was begun.
        known: its run, as far as it was written; None where there is none.
        parent: the id of the sweep's own run.
        whole: give the parameters also of a known run; whoever made it may have died before they were written.
    """
    state, events = trial.state(), trial.events()
    start = int((events[0].time if events else (trial.path / SPEC).stat().st_mtime) * 1000)
    ended = int(events[-1].time * 1000) if events else start
    run, new = known or TrackedRun("", status="begun"), None
    if known is None:
        new = NewRun(_name(trial), start, {**tags_of(trial.trial_id, trial.spec()), "mlflow.parentRunId": parent})
    epochs = [event for event in trial.epochs() if event.epoch > run.epoch]
    metrics = [
        RunMetric(name, value, int(event.time * 1000), event.epoch)
        for event in epochs
        for name, value in epoch_metrics(event).items()
    ]
    tags: dict[str, str] = {}
    loads = loads_of(events)
    if news := loads[run.loads :]:
        metrics += [RunMetric(*values) for values in load_metrics(news, first=run.loads)]
        run = run.with_loads(len(loads))
        tags |= {"node": news[-1].node, LOADS: str(len(loads))}
    if epochs:
        run = run.with_epoch(epochs[-1].epoch)
        tags[EPOCH] = str(run.epoch)
    update = RunUpdate(
        trial=trial.trial_id,
        run=run.with_status(state.status),
        new=new,
        params=params_of(trial.spec()) if known is None or whole else {},
        metrics=tuple(metrics),
        artifacts=(),
        tags=tags,
    )
    try:
        result = trial.result()
    except RecordError:  # the reconciler tells of it; the run says as much as could be read before
        return replace(update, run=run)
    if result is None:
        return update if run.status == state.status else _with_state(update, trial, ended)
    written = hashlib.sha256((trial.path / RESULT).read_bytes()).hexdigest()[:16]
    if run.written == written:
        return update
    # At step 0 the UI draws a value that a run has once as a bar, and the bars of all runs side by side.
    scores = tuple(RunMetric(name, float(value), ended, 0) for name, value in result_metrics(result).items())
    files = (trial.path / name for name in (SPEC, RESULT, SAMPLES_PICTURE, CONFUSION_PICTURE))
    return replace(
        update,
        run=update.run.with_result(written),
        metrics=update.metrics + scores,
        artifacts=tuple(path for path in files if path.exists()),
        tags={**tags, **result_tags(result), WRITTEN: written},
        status="FINISHED",
        ended=ended,
    )


def tracked_run(run_id: str, tags: Mapping[str, str]) -> TrackedRun:
    """A run as its own tags say how far it is written."""
    return TrackedRun(
        run_id,
        int(tags.get(EPOCH, 0)),
        str(tags.get(WRITTEN, "")),
        str(tags.get("status", "")),
        int(tags.get(LOADS, 0)),
    )


def _with_state(update: RunUpdate, trial: TrialReading, ended: int) -> RunUpdate:
    state = trial.state()
    tags = {**update.tags, "status": state.status}
    if state.status == "pruned":
        return replace(update, tags=tags | {"stopped_early": state.message or ""}, status="KILLED", ended=ended)
    if state.status != "failed":
        return replace(update, tags=tags, status="RUNNING")
    tags |= {"failure": state.kind or "", "mlflow.note.content": state.message or ""}
    return replace(update, tags=tags, status="FAILED", ended=ended)


def _name(trial: TrialReading) -> str:
    spec = trial.spec()
    return f"{spec.encoder.name} {spec.dataset.name} {spec.regime.name} lr={spec.lr:g}"
