"""What an MLflow run holds of a trial: parameters, metrics and tags, under names that MLflow takes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.events import EpochFinished
from cryobench.workers.record.result import TrialResult

_EPOCH_METRICS = ("loss", "lr", "seconds", "val_miou", "val_mean_f1", "val_overall_accuracy")
_TEST_METRICS = ("miou", "miou_low", "miou_high", "mean_f1", "overall_accuracy")
_COSTS = ("parameters", "trained_parameters", "gmacs", "train_seconds", "tiles_per_second", "peak_memory_mb")
#: MLflow takes letters, digits and these; a slash would make a folder of the name's first part.
_UNFIT = re.compile(r"[^\w.\- :]")


def fit_names(names: Iterable[str]) -> list[str]:
    """``names`` as MLflow takes them, in order and still all different: ``lake (ice)`` becomes ``lake _ice_``."""
    fit: list[str] = []
    for name in names:
        plain = _UNFIT.sub("_", name).strip()[:200]
        plain = plain if plain.strip(".") else "_"
        number, one = 2, plain
        while one in fit:
            one, number = f"{plain} {number}", number + 1
        fit.append(one)
    return fit


def tags_of(trial: str, spec: TrialSpec) -> dict[str, str]:
    """Tags of a run from its start, by which the UI filters."""
    return {
        "trial_id": trial,
        "encoder": spec.encoder.name,
        "dataset": spec.dataset.name,
        "regime": spec.regime.name,
        "weights": spec.encoder.weights.provenance,
        "status": "begun",
    }


def params_of(spec: TrialSpec) -> dict[str, str]:
    """The parameters of a run."""
    params = {
        "encoder": spec.encoder.name,
        "variant": spec.encoder.variant,
        "dataset": spec.dataset.name,
        "store_digest": spec.dataset.store_digest,
        "statistics": spec.dataset.statistics,
        "regime": spec.regime.name,
        "label_fraction": spec.regime.label_fraction,
        "lr": spec.lr,
        "seed": spec.seed,
        **{f"protocol.{key}": value for key, value in spec.protocol.model_dump(mode="json").items()},
    }
    return {key: str(value) for key, value in params.items()}


def epoch_metrics(event: EpochFinished) -> dict[str, float]:
    """The metrics of one epoch."""
    return {name: value for name in _EPOCH_METRICS if (value := getattr(event, name)) is not None}


def result_metrics(result: TrialResult) -> dict[str, float]:
    """The metrics of a finished trial."""
    values: dict[str, float] = {}
    for name in _COSTS:
        if (value := getattr(result.cost, name)) is not None:
            values[name] = value
    if result.best_val_miou is not None:
        values["best_val_miou"] = result.best_val_miou
    if result.test is not None:
        for name in _TEST_METRICS:
            values[f"test_{name}"] = getattr(result.test, name)
        for label, iou, f1 in zip(fit_names(result.classes), result.test.iou, result.test.f1, strict=True):
            values[f"test_iou/{label}"], values[f"test_f1/{label}"] = iou, f1
    return values


def result_tags(result: TrialResult) -> dict[str, str]:
    """The tags of a finished trial; the classes by their own names, which metrics may not bear."""
    return {
        "status": result.status,
        "classes": "; ".join(result.classes),
        "data_origin": result.provenance.data_origin,
        "device": result.provenance.device,
        "code_version": result.provenance.code,
    }
