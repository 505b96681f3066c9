"""Which part of a GPU a trial gets, from the memory that the first trial of its kind was measured to need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.folder import TrialFolder

#: A measured peak is what torch had allocated; its allocator, the CUDA context and libraries come on top.
_MARGIN, _CONTEXT_MB = 1.25, 1500.0
#: The most trials on one GPU.
_MOST = 8


def share_for(peak_mb: float, device_mb: float) -> float:
    """The part of a GPU for a trial that needs ``peak_mb`` of the ``device_mb`` that it has: 1, 1/2, 1/3, ….

    The whole one where a second trial beside it would not fit, by a margin of a quarter and the context's size.
    """
    needed = peak_mb * _MARGIN + _CONTEXT_MB
    together = max(1, min(_MOST, math.floor(device_mb / needed)))
    return math.floor(1e4 / together) / 1e4


@dataclass
class GpuShares:
    """Shares of a sweep's trials; a trial of a kind that nothing is known of gets a GPU to itself.

    Args:
        specs: the trials by id.
        storage: where finished ones left what they needed.
    """

    specs: Mapping[str, TrialSpec]
    storage: Path
    _peak_mb: dict[tuple[object, ...], float] = field(default_factory=dict)
    _smallest_mb: float | None = None

    def of(self, trial: str) -> float:
        """The part of one GPU that the trial gets."""
        peak = self._peak_mb.get(kind_of(self.specs[trial]))
        if peak is None or self._smallest_mb is None:
            return 1.0
        return share_for(peak, self._smallest_mb)

    def saw_device(self, memory_mb: float) -> None:
        """A GPU of this size is in the cluster; what fits on the smallest fits on all."""
        self._smallest_mb = min(memory_mb, self._smallest_mb or memory_mb)

    def learn(self, trials: Iterable[str]) -> None:
        """Take in what finished trials on GPUs needed."""
        for trial in trials:
            if trial not in self.specs:
                continue
            result = TrialFolder(self.storage, trial).result()
            if result is None or result.provenance.device.startswith("cpu"):
                continue
            kind = kind_of(self.specs[trial])
            self._peak_mb[kind] = max(result.cost.peak_memory_mb, self._peak_mb.get(kind, 0.0))


def kind_of(spec: TrialSpec) -> tuple[object, ...]:
    """What decides about a trial's memory: system, tile, batch, precision, and what trains."""
    protocol, regime = spec.protocol, spec.regime
    return (
        spec.encoder.name,
        spec.encoder.variant,
        spec.dataset.name,
        regime.name,
        protocol.batch_size,
        protocol.eval_batch_size,
        protocol.precision,
        protocol.decoder_channels,
        protocol.compile,
        protocol.channels_last,
    )
