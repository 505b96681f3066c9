"""What a finished trial says of itself: outcome, provenance, cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from cryobench.conf.strict import Strict


class Metrics(Strict):
    """All in percent; per class in class order. An absent class counts as 0 in the means, as in the reference."""

    miou: float
    mean_f1: float
    overall_accuracy: float
    iou: tuple[float, ...]
    f1: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]


class TestMetrics(Metrics):
    """Metrics on the test split; ``miou_low`` and ``miou_high`` bound mIoU's 95 % bootstrap interval over tiles."""

    __test__ = False

    miou_low: float
    miou_high: float


class Provenance(Strict):
    """Where a number comes from."""

    weights: str
    store_digest: str
    data_origin: str
    code: str
    libraries: dict[str, str]
    host: str
    device: str


class Cost(Strict):
    """What a trial took. ``gmacs``: 10^9 multiply-adds of encoder and decoder for one crop, the paper's "GFLOPs";
    None where they could not be counted.

    ``seconds``: wall time of the last attempt by what it was spent on (data, training, evaluation, checkpointing).
    """

    parameters: int
    trained_parameters: int
    gmacs: float | None
    train_seconds: float
    total_seconds: float
    seconds: dict[str, float]
    tiles_per_second: float
    peak_memory_mb: float


#: The format of ``result.json``; read_record brings earlier ones to it.
RESULT_FORMAT = 2
#: Format 2 has the number itself in the file.
RESULT_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda plain: plain}


class TrialResult(Strict):
    """``result.json``.

    ``test`` is None only for a trial that diverged before its first validation. ``micro_batches``: the parts from which
    gradients were gathered, more than one after a batch did not fit into memory.
    """

    trial_id: str
    status: Literal["completed", "diverged"]
    epochs: int
    steps: int
    training_tiles: int
    micro_batches: int = 1
    best_epoch: int | None
    best_val_miou: float | None
    test: TestMetrics | None
    classes: tuple[str, ...]
    final_weights: str
    best_weights: str | None
    provenance: Provenance
    cost: Cost
    message: str | None = None

    def reproducible(self) -> dict[str, object]:
        """The part that must be the same wherever and however often the trial runs on one machine type."""
        return self.model_dump(mode="json", exclude={"provenance": {"host", "code"}, "cost": _TIMES})


_TIMES = {"train_seconds", "total_seconds", "seconds", "tiles_per_second", "peak_memory_mb"}
