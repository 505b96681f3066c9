"""One trial from its spec to its result: a plain function, resumable from its folder at epoch boundaries."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from cryobench.conf.errors import CryobenchError, InterruptedTrialError, OutOfMemoryError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.location import below
from cryobench.workers.checkpoint import Checkpoints, TrainingState, weights_digest
from cryobench.workers.cost import multiply_adds
from cryobench.workers.data import TrialData, open_data
from cryobench.workers.evaluation import evaluate
from cryobench.workers.files import write_whole
from cryobench.workers.folder import CONFUSION, CONFUSION_PICTURE, SAMPLES_PICTURE, TrialFolder
from cryobench.workers.metrics import bootstrap_miou, metrics
from cryobench.workers.mirror import Mirror
from cryobench.workers.model import SegmentationModel, build_model
from cryobench.workers.pictures import save_confusion, save_samples
from cryobench.workers.provenance import code_version, device_name, library_versions
from cryobench.workers.result import Cost, Provenance, TestMetrics, TrialResult
from cryobench.workers.training import make_optimizer, train_epoch

Report = Callable[[dict[str, Any]], None]
_PICTURED = 4


@dataclass(frozen=True)
class Place:
    """Where a trial runs: nothing here can change its result.

    ``storage`` is a local folder; with ``mirror``, the URL of an object store, it is this node's working copy of it.
    """

    storage: Path
    data_dir: Path | str
    cache_dir: Path
    weights_dir: Path | None = None
    resources: ResourceSpec = field(default_factory=ResourceSpec)
    device: str = "auto"
    mirror: str | None = None

    def torch_device(self) -> torch.device:
        """The device asked for; ``auto`` is a GPU where there is one."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


def run_trial(
    spec: TrialSpec,
    place: Place,
    *,
    report: Report = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    retry_failed: bool = True,
) -> TrialResult:
    """Run a trial to its end, or continue it from its folder; a finished one is only read.

    Args:
        spec: the trial.
        place: where its data, weights and folder are, and what it may use.
        report: told every event as it is recorded.
        should_stop: asked after every epoch; True leaves the trial resumable.
        retry_failed: whether a trial that failed for a deterministic reason is tried again.

    Raises:
        InterruptedTrialError: ``should_stop`` said so.
        CryobenchError: the trial failed; its kind and message are recorded in its folder.
    """
    folder = TrialFolder(place.storage, spec.trial_id)
    mirror = Mirror(place.mirror) if place.mirror else None
    with folder.locked(), _mirrored(mirror, place.storage, folder, report) as report:
        result = folder.result()
        if result is not None:
            return result
        state = folder.state()
        if state.waits_for_user and not retry_failed:
            raise CryobenchError(state.message or "The trial failed before.")
        folder.write_spec(spec)
        device = place.torch_device()
        attempt = {"host": platform.node(), "pid": os.getpid(), "device": str(device), "code": code_version()}
        report(folder.record("attempt", **attempt))
        try:
            return _Trial(spec, place, folder, device, report, should_stop).run()
        except InterruptedTrialError:
            report(folder.record("interrupted"))
            raise
        except Exception as error:
            failure = _explained(error, spec)
            kind = failure.kind if isinstance(failure, CryobenchError) else "crashed"
            message = str(failure) if isinstance(failure, CryobenchError) else f"{type(error).__name__}: {error}"
            report(folder.record("failed", kind=kind, message=message, trace=traceback.format_exc()))
            if failure is error:
                raise
            raise failure from error


@contextmanager
def _mirrored(mirror: Mirror | None, storage: Path, folder: TrialFolder, report: Report) -> Iterator[Report]:
    """A ``report`` that first brings the trial's folder to the object store, if there is one."""
    if mirror is None:
        yield report
        return
    mirror.pull_trial(storage, folder.trial_id, whole=True)

    def push_and_report(event: dict[str, Any]) -> None:
        if event["event"] in ("attempt", "epoch", "failed", "interrupted", "finished"):
            mirror.push_trial(storage, folder.trial_id)
        report(event)

    yield push_and_report


class _Trial:
    def __init__(
        self,
        spec: TrialSpec,
        place: Place,
        folder: TrialFolder,
        device: torch.device,
        report: Report,
        should_stop: Callable[[], bool],
    ) -> None:
        self.spec, self.place, self.folder, self.device = spec, place, folder, device
        self.report, self.should_stop = report, should_stop
        self.checkpoints = Checkpoints(folder.path)
        self.started = time.monotonic()
        self.peak_memory_mb = 0.0

    def run(self) -> TrialResult:
        spec, place = self.spec, self.place
        torch.set_num_threads(spec.protocol.cpu_threads)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        data = open_data(spec, below(place.data_dir, f"{spec.dataset.name}.zarr"), place.cache_dir, place.resources)
        model = build_model(spec, len(data.info.classes), place.weights_dir).to(self.device)
        data.preprocess.to(self.device)
        state, diverged = self._train(model, data)
        return self._finish(model, data, state, diverged)

    def _train(self, model: SegmentationModel, data: TrialData) -> tuple[TrainingState, str | None]:
        """All epochs that are left; the last whole state, and why training ended early if it did."""
        spec, protocol = self.spec, self.spec.protocol
        optimizer = make_optimizer(model, spec)
        state = self._resume(model, optimizer) or TrainingState(
            0, model.trained_state(), optimizer.state_dict(), [], None
        )
        with data.loader(self.place.resources, self.device) as loader:
            for epoch in range(state.epoch + 1, protocol.epochs + 1):
                began = time.monotonic()
                loss = train_epoch(model, optimizer, data, loader, spec, epoch, self.device)
                seconds = time.monotonic() - began
                if not np.isfinite(loss):
                    self.report(self.folder.record("diverged", epoch=epoch))
                    return state, f"The loss became {loss} in epoch {epoch} at learning rate {spec.lr:g}."
                entry: dict[str, Any] = {
                    "epoch": epoch,
                    "loss": loss,
                    "seconds": seconds,
                    "lr": optimizer.param_groups[0]["lr"],
                }
                best, is_best = state.best, False
                if epoch % protocol.eval_every == 0 or epoch == protocol.epochs:
                    matrices, _ = evaluate(model, data, "val", spec, self.device)
                    found = metrics(matrices.sum(axis=0))
                    entry |= {
                        "val_miou": found.miou,
                        "val_mean_f1": found.mean_f1,
                        "val_overall_accuracy": found.overall_accuracy,
                    }
                    is_best = best is None or found.miou > best["val_miou"]
                    if is_best:
                        best = {"epoch": epoch, "val_miou": found.miou}
                state = TrainingState(
                    epoch, model.trained_state(), optimizer.state_dict(), [*state.history, entry], best
                )
                self._note_memory()
                self.checkpoints.save(state, is_best)
                self.report(self.folder.record("epoch", **entry))
                if self.should_stop() and epoch < protocol.epochs:
                    raise InterruptedTrialError(f"Stopped after epoch {epoch} of {protocol.epochs}.")
        return state, None

    def _resume(self, model: SegmentationModel, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        state = self.checkpoints.latest()
        if state is None:
            return None
        try:
            model.load_trained_state(state.model)
            optimizer.load_state_dict(state.optimizer)
        except (KeyError, RuntimeError, ValueError) as error:
            self.report(self.folder.record("checkpoint_discarded", reason=str(error)[:300]))
            return None
        recorded = {event["epoch"] for event in self.folder.epochs()}
        for entry in state.history:
            if entry["epoch"] not in recorded:
                self.report(self.folder.record("epoch", **entry))
        self.report(self.folder.record("resumed", epoch=state.epoch))
        return state

    def _finish(
        self, model: SegmentationModel, data: TrialData, state: TrainingState, diverged: str | None
    ) -> TrialResult:
        spec, info = self.spec, data.info
        final = weights_digest(state.model)
        test, best_weights = None, None
        if state.best is not None:
            weights = self.checkpoints.best()
            model.load_trained_state(weights)
            best_weights = weights_digest(weights)
            test = self._test(model, data)
        trained = sum(p.numel() for p in model.trained_parameters())
        seconds = sum(entry["seconds"] for entry in state.history)
        crops = len(data.sampler) * spec.protocol.batch_size * state.epoch
        result = TrialResult(
            trial_id=spec.trial_id,
            status="diverged" if diverged else "completed",
            epochs=state.epoch,
            steps=state.epoch * len(data.sampler),
            training_tiles=len(data.subset),
            best_epoch=state.best["epoch"] if state.best else None,
            best_val_miou=state.best["val_miou"] if state.best else None,
            test=test,
            classes=info.classes,
            final_weights=final,
            best_weights=best_weights,
            provenance=Provenance(
                weights=spec.encoder.weights.provenance,
                store_digest=info.digest,
                data_origin=info.origin,
                code=code_version(),
                libraries=library_versions(),
                host=platform.node(),
                device=device_name(self.device),
            ),
            cost=Cost(
                parameters=sum(p.numel() for p in model.parameters()),
                trained_parameters=trained,
                gmacs=multiply_adds(model, spec, data.window("train")),
                train_seconds=seconds,
                total_seconds=time.monotonic() - self.started,
                tiles_per_second=crops / seconds if seconds else 0.0,
                peak_memory_mb=self.peak_memory_mb,
            ),
            message=diverged,
        )
        self.folder.write_result(result)
        self.checkpoints.drop_latest()
        self.report(self.folder.record("finished", status=result.status))
        return result

    def _test(self, model: SegmentationModel, data: TrialData) -> TestMetrics:
        spec, info = self.spec, data.info
        count = info.splits["test"].tiles
        pictured = sorted({i * count // _PICTURED for i in range(_PICTURED)})
        matrices, samples = evaluate(model, data, "test", spec, self.device, keep=pictured)
        self._note_memory()
        write_whole(self.folder.path / CONFUSION, lambda path: _save_array(path, matrices))
        total = matrices.sum(axis=0)
        save_samples(self.folder.path / SAMPLES_PICTURE, samples, info.classes, spec.label)
        save_confusion(self.folder.path / CONFUSION_PICTURE, total, info.classes, spec.label)
        low, high = bootstrap_miou(matrices, spec.protocol.bootstrap_samples, spec.seed)
        return TestMetrics(**metrics(total).model_dump(), miou_low=low, miou_high=high)

    def _note_memory(self) -> None:
        if self.device.type == "cuda":
            used = float(torch.cuda.max_memory_allocated(self.device))
        else:
            used = float(psutil.Process().memory_info().rss)
        self.peak_memory_mb = max(self.peak_memory_mb, used / 1e6)


def _save_array(path: Path, values: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.save(file, values)


def _explained(error: Exception, spec: TrialSpec) -> Exception:
    """The error itself, or what it means where the library's own words do not say it."""
    text = str(error)
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
    if exhausted or "not enough memory" in text:
        return OutOfMemoryError(
            f"Out of memory with batches of {spec.protocol.batch_size} crops ({text[:200]}). "
            "Run fewer trials at once (resources.max_concurrent), use a larger device, or lower protocol.batch_size "
            "(another protocol, so another trial)."
        )
    return error
