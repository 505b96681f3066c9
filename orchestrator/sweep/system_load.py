"""What a trial's node and process are busy with, sampled beside the trial by MLflow's own monitors.

It goes into the trial's folder as `SystemLoad` events, from which it comes to MLflow. Nothing in a trial depends on it.
"""

from __future__ import annotations

import os
import platform
import re
import threading
from collections import defaultdict
from contextlib import suppress
from types import TracebackType
from typing import Any

import psutil

from cryobench.workers.record.events import Note, SystemLoad
from cryobench.workers.record.folder import EVENTS, RESULT, TrialFolder

#: A sample is taken so often; the first is recorded as it is, then the means of so many.
_SAMPLE_S, _SAMPLES = 10.0, 3
_PATIENCE_S = 2.0
_GPU = re.compile(r"gpu_(\d+)_")


class LoadSampler:
    """Samples while its context lasts; a trial that ends before the first sample costs nothing.

    Args:
        folder: of the trial, which may not be there yet.
        gpu: whether the trial has a GPU.
        sample_s: seconds between samples.
    """

    def __init__(self, folder: TrialFolder, *, gpu: bool, sample_s: float = _SAMPLE_S) -> None:
        self._folder, self._gpu, self._sample_s = folder, gpu, sample_s
        self._over = threading.Event()
        self._recording = threading.Lock()
        self._process = psutil.Process()

    def __enter__(self) -> LoadSampler:
        threading.Thread(target=self._sample, name="load", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        # Once a sample that is just being written is, nothing more comes. It may wait for a storage that is away; the
        # trial, which ends, does not.
        if self._recording.acquire(timeout=_PATIENCE_S):
            self._recording.release()

    def _sample(self) -> None:
        monitors: list[Any] | None = None
        samples: list[dict[str, float]] = []
        wanted = 1
        psutil.cpu_percent()  # a thread's first call begins the span over which its next one speaks
        self._process.cpu_percent()
        while not self._over.wait(self._sample_s):
            try:
                if monitors is None:
                    monitors = _monitors(self._gpu)
                samples.append(_collect(monitors) | self._own())
                if len(samples) >= wanted:
                    self._record(SystemLoad(node=platform.node(), values=_means(samples)))
                    samples, wanted = [], _SAMPLES
            except Exception as error:  # a figure beside the trial: failing to take it never costs the trial
                self._give_up(error)
                return

    def _own(self) -> dict[str, float]:
        return {
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }

    def _record(self, event: SystemLoad | Note) -> None:
        with self._recording:
            begun = (self._folder.path / EVENTS).exists() and not (self._folder.path / RESULT).exists()
            if begun and not self._over.is_set():
                self._folder.record(event)

    def _give_up(self, error: Exception) -> None:
        with suppress(Exception):  # where the folder cannot be written, the trial itself says so
            self._record(Note(message=f"The load is not sampled any more ({type(error).__name__}: {error})."))


def _monitors(gpu: bool) -> list[Any]:
    """MLflow's monitors; the GPU's where there is one and NVIDIA's library (nvidia-ml-py) is installed."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    monitors: list[Any] = [CPUMonitor()]
    if gpu:
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        with suppress(ImportError, RuntimeError):  # no such library, or no driver that it speaks to
            monitors.append(GPUMonitor())
    return monitors


def _collect(monitors: list[Any]) -> dict[str, float]:
    """One sample; of the node's GPUs only those that this process may use."""
    own = _own_gpus()
    found: dict[str, float] = {}
    for monitor in monitors:
        monitor.clear_metrics()
        monitor.collect_metrics()
        for name, value in monitor.aggregate_metrics().items():
            gpu = _GPU.match(name)
            if gpu is None or own is None or int(gpu[1]) in own:
                found[name] = float(value)
    return found


def _own_gpus() -> set[int] | None:
    """The numbers of the GPUs that were given to this process; None where they are named otherwise."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {int(one) for one in named} if all(one.strip().isdigit() for one in named) else None


def _means(samples: list[dict[str, float]]) -> dict[str, float]:
    gathered: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for name, value in sample.items():
            gathered[name].append(value)
    return {name: round(sum(values) / len(values), 1) for name, values in gathered.items()}
