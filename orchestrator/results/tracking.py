"""MLflow: one experiment a sweep, one run a trial under a parent run. A projection of the trial folders.

Every write is idempotent: runs are found by their trial's id, metrics carry the time of their event, and tags say
how far a run was written, so projecting twice changes nothing. Only the driver's process writes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryobench.conf.errors import TrackingError
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.formatting import masked
from cryobench.workers.record.folder import CONFUSION_PICTURE, RESULT, SAMPLES_PICTURE, SPEC, TrialFolder
from cryobench.workers.record.result import TrialResult

_EPOCH, _WRITTEN, _ROLE = "cryobench.epoch", "cryobench.result", "cryobench.role"
_BATCH = 900


def default_uri(storage: Path) -> str:
    """The embedded store: SQLite under the storage folder."""
    return f"sqlite:///{storage / 'mlflow.db'}"


@dataclass
class _Run:
    run_id: str
    epoch: int = 0
    written: str = ""
    status: str = ""


@dataclass
class Tracker:
    """One sweep's experiment.

    Raises:
        TrackingError: from every method, if the server or database cannot be reached or refuses.
    """

    uri: str
    storage: Path
    sweep: str
    _runs: dict[str, _Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of every table it makes
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            self._client: Any = MlflowClient(tracking_uri=self.uri)
            self._experiment = self._find_experiment()
            self._parent = self._find_runs()
        except (MlflowException, OSError, ValueError) as error:
            raise _unreachable(self.uri, error) from error
        except Exception as error:
            if type(error).__module__.startswith("sqlalchemy"):
                raise _unreachable(self.uri, error) from error
            raise

    def project(self, folder: TrialFolder) -> str | None:
        """Bring the trial's run up to what its folder says; its id, or None for a trial that was never begun."""
        from mlflow.exceptions import MlflowException

        try:
            return self._project(folder)
        except (MlflowException, OSError) as error:
            raise _unreachable(self.uri, error) from error

    def _project(self, folder: TrialFolder) -> str | None:
        state = folder.state()
        if state.status == "pending":
            return None
        spec, events = folder.spec(), folder.events()
        run = self._runs.get(spec.trial_id) or self._create(spec, events)
        self._log_epochs(run, folder)
        result = folder.result()
        written = hashlib.sha256((folder.path / RESULT).read_bytes()).hexdigest()[:16] if result else ""
        if result and run.written != written:
            self._log_result(run, folder, result, events, written)
        elif not result and run.status != state.status:
            self._client.set_tag(run.run_id, "status", state.status)
            if state.status == "failed":
                self._client.set_tag(run.run_id, "failure", state.kind or "")
                self._client.set_tag(run.run_id, "mlflow.note.content", state.message or "")
                self._client.set_terminated(run.run_id, "FAILED", end_time=_milliseconds(events[-1]))
            else:
                self._client.update_run(run.run_id, status="RUNNING")
        run.status = state.status
        return run.run_id

    def finish(self, counts: dict[str, int]) -> None:
        """Note the sweep's counts on the parent run and end it for now."""
        from mlflow.exceptions import MlflowException

        try:
            before = dict(self._client.get_run(self._parent).data.tags)
            for name, count in counts.items():
                if before.get(f"trials.{name}") != str(count):
                    self._client.set_tag(self._parent, f"trials.{name}", str(count))
            if self._client.get_run(self._parent).info.status == "RUNNING":
                self._client.set_terminated(self._parent, "FINISHED")
        except MlflowException as error:
            raise _unreachable(self.uri, error) from error

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self.sweep)
        if found is None:
            local = self.uri.startswith(("sqlite:", "file:"))
            where = (self.storage / "mlartifacts" / self.sweep).as_uri() if local else None
            return str(self._client.create_experiment(self.sweep, artifact_location=where))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_runs(self) -> str:
        parent, token = None, None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1000, page_token=token)
            for run in page:
                tags = run.data.tags
                if tags.get(_ROLE) == "sweep":
                    parent = run.info.run_id
                elif "trial_id" in tags:
                    self._runs[tags["trial_id"]] = _Run(
                        run.info.run_id, int(tags.get(_EPOCH, 0)), tags.get(_WRITTEN, ""), tags.get("status", "")
                    )
            token = page.token
            if not token:
                break
        if parent is None:
            created = self._client.create_run(
                self._experiment, run_name=f"sweep {self.sweep}", tags={_ROLE: "sweep", "sweep": self.sweep}
            )
            parent = created.info.run_id
        return str(parent)

    def _create(self, spec: TrialSpec, events: list[dict[str, Any]]) -> _Run:
        from mlflow.entities import Param

        tags = {
            "trial_id": spec.trial_id,
            "encoder": spec.encoder.name,
            "dataset": spec.dataset.name,
            "regime": spec.regime.name,
            "weights": spec.encoder.weights.provenance,
            "status": "begun",
            "mlflow.parentRunId": self._parent,
        }
        name = f"{spec.encoder.name} {spec.dataset.name} {spec.regime.name} lr={spec.lr:g}"
        created = self._client.create_run(
            self._experiment, start_time=_milliseconds(events[0]), tags=tags, run_name=name
        )
        params = {
            "encoder": spec.encoder.name,
            "variant": spec.encoder.variant,
            "dataset": spec.dataset.name,
            "store_digest": spec.dataset.store_digest,
            "regime": spec.regime.name,
            "label_fraction": spec.regime.label_fraction,
            "lr": spec.lr,
            "seed": spec.seed,
            **{f"protocol.{key}": value for key, value in spec.protocol.model_dump(mode="json").items()},
        }
        self._client.log_batch(created.info.run_id, params=[Param(key, str(value)) for key, value in params.items()])
        self._runs[spec.trial_id] = _Run(created.info.run_id, status="begun")
        return self._runs[spec.trial_id]

    def _log_epochs(self, run: _Run, folder: TrialFolder) -> None:
        from mlflow.entities import Metric, RunTag

        new = [event for event in folder.epochs() if event["epoch"] > run.epoch]
        if not new:
            return
        names = ("loss", "lr", "seconds", "val_miou", "val_mean_f1", "val_overall_accuracy")
        metrics = [
            Metric(name, event[name], _milliseconds(event), event["epoch"])
            for event in new
            for name in names
            if name in event
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run.run_id, metrics=metrics[start : start + _BATCH])
        run.epoch = new[-1]["epoch"]
        self._client.log_batch(run.run_id, tags=[RunTag(_EPOCH, str(run.epoch))])

    def _log_result(
        self, run: _Run, folder: TrialFolder, result: TrialResult, events: list[dict[str, Any]], written: str
    ) -> None:
        from mlflow.entities import Metric, RunTag

        ended = _milliseconds(events[-1])
        values: dict[str, float] = {
            "parameters": result.cost.parameters,
            "trained_parameters": result.cost.trained_parameters,
            "gmacs": result.cost.gmacs,
            "train_seconds": result.cost.train_seconds,
            "tiles_per_second": result.cost.tiles_per_second,
            "peak_memory_mb": result.cost.peak_memory_mb,
        }
        if result.best_val_miou is not None:
            values["best_val_miou"] = result.best_val_miou
        if result.test is not None:
            for name in ("miou", "miou_low", "miou_high", "mean_f1", "overall_accuracy"):
                values[f"test_{name}"] = getattr(result.test, name)
            for label, iou, f1 in zip(result.classes, result.test.iou, result.test.f1, strict=True):
                values[f"test_iou/{label}"], values[f"test_f1/{label}"] = iou, f1
        # At step 0 the UI draws a value that a run has once as a bar, and the bars of all runs side by side.
        metrics = [Metric(name, float(value), ended, 0) for name, value in values.items()]
        self._client.log_batch(run.run_id, metrics=metrics)
        for name in (SPEC, RESULT, SAMPLES_PICTURE, CONFUSION_PICTURE):
            if (folder.path / name).exists():
                self._client.log_artifact(run.run_id, str(folder.path / name))
        tags = {
            "status": result.status,
            "data_origin": result.provenance.data_origin,
            "device": result.provenance.device,
            "code_version": result.provenance.code,
            _WRITTEN: written,
        }
        self._client.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self._client.set_terminated(run.run_id, "FINISHED", end_time=ended)
        run.written = written


def _milliseconds(event: dict[str, Any]) -> int:
    return int(event["time"] * 1000)


def _unreachable(uri: str, error: BaseException) -> TrackingError:
    reason = masked(" ".join(str(error).split()), uri)[:200]
    return TrackingError(
        f"MLflow at {masked(uri)} cannot be used ({type(error).__name__}: {reason}). Results are safe "
        "in the trial folders: start the server or give another --tracking-uri (or --tracking-uri none), and run "
        "cryobench sync to bring MLflow up to date."
    )
