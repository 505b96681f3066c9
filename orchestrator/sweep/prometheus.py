"""A sweep's numbers among Ray's own metrics, which every node offers to Prometheus.

Ray adds ``ray_`` to the names. Without its extra packages (``pip install 'ray[default]'``) it keeps the numbers to
itself; then, and where anything else goes wrong here, the sweep goes on without them.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from typing import Any

from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.events import EpochFinished, Event

_logger = logging.getLogger(__name__)


class TrialGauge:
    """``ray_cryobench_trials``: trials of a sweep by state, as its driver knows them."""

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep
        self._gauge = _Gauge("cryobench_trials", "Trials of a sweep by state.", ("sweep", "state"))

    def show(self, counts: Mapping[str, int]) -> None:
        """Set the gauge of every state in ``counts``."""
        for state, count in counts.items():
            self._gauge.set(count, {"sweep": self._sweep, "state": state})


class WorkerGauges:
    """``ray_cryobench_tiles_per_second`` and ``ray_cryobench_gpu_memory_bytes`` of the trial that a worker runs.

    Args:
        spec: the trial.
        gpu_memory: bytes that the process holds on its GPU; None without one.
    """

    def __init__(self, spec: TrialSpec, gpu_memory: Callable[[], int | None]) -> None:
        keys = ("encoder", "dataset", "node")
        self._tags = dict(zip(keys, (spec.encoder.name, spec.dataset.name, platform.node()), strict=True))
        self._tiles = _Gauge("cryobench_tiles_per_second", "Training tiles a second in a trial's last epoch.", keys)
        self._memory = _Gauge("cryobench_gpu_memory_bytes", "GPU memory that a trial's process holds.", keys)
        self._gpu_memory = gpu_memory

    def tell(self, event: Event) -> None:
        """An event of the trial."""
        if isinstance(event, EpochFinished) and event.tiles is not None and event.seconds > 0:
            self._tiles.set(event.tiles / event.seconds, self._tags)
            if (held := self._gpu_memory()) is not None:
                self._memory.set(held, self._tags)

    def close(self) -> None:
        """The trial does not run here any more: both fall to 0."""
        self._tiles.set(0, self._tags)
        if self._gpu_memory() is not None:
            self._memory.set(0, self._tags)


class _Gauge:
    """A gauge of Ray's, made when it is first set, and given up at the first thing that goes wrong."""

    def __init__(self, name: str, description: str, keys: tuple[str, ...]) -> None:
        self._name, self._description, self._keys = name, description, keys
        self._gauge: Any = None
        self._broken = False

    def set(self, value: float, tags: dict[str, str]) -> None:
        if self._broken:
            return
        try:
            import ray

            if not ray.is_initialized():
                return
            if self._gauge is None:
                from ray.util.metrics import Gauge

                self._gauge = Gauge(self._name, description=self._description, tag_keys=self._keys)
            self._gauge.set(value, tags=tags)
        except Exception as error:  # a number to look at must not cost a sweep
            self._broken = True
            _logger.warning("The metric %s is not exported any more (%s).", self._name, error)
