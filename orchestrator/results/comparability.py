"""What may be compared: the key that all trials of one cell of a table share."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from cryobench.conf.benchmark_editions import editions_of
from cryobench.conf.identity import canonical_json, identity, identity_digest
from cryobench.conf.trial import TrialSpec


@dataclass(frozen=True)
class Comparability:
    """Everything besides encoder, data set, learning rate and seed that makes two numbers unlike.

    Names are for people and may be given twice, so ``protocol``, ``regime_digest`` and ``encoder_digest`` stand for
    the values behind them (8 hex digits each); ``encoder_digest`` covers settings and what is fed where.
    ``micro_batches`` is None for a trial that failed: in how many parts its batches would have run is not known.
    """

    editions: tuple[str, ...]
    protocol: str
    regime: str
    regime_digest: str
    variant: str
    modality: str
    view: str
    statistics: str
    weights_kind: str
    weights_digest: str | None
    encoder_digest: str
    store_digest: str
    micro_batches: int | None

    @classmethod
    def of(cls, spec: TrialSpec, origin: str | None, micro_batches: int | None) -> Comparability:
        """The key of a trial; ``origin`` is where its data came from, as its result says."""
        encoder = identity(spec.encoder)
        encoder["weights"] = encoder["weights"].get("layout")  # kind and digest are parts of their own
        return cls(
            editions=editions_of(spec.dataset.name, origin),
            protocol=identity_digest(spec.protocol)[:8],
            regime=spec.regime.name,
            regime_digest=_short(identity(spec.regime)),
            variant=spec.encoder.variant,
            modality="+".join(sorted(spec.encoder.bands)),
            view=view_of(spec),
            statistics=spec.dataset.statistics,
            weights_kind=spec.encoder.weights.kind,
            weights_digest=spec.encoder.weights.digest,
            encoder_digest=_short(encoder),
            store_digest=spec.dataset.store_digest,
            micro_batches=micro_batches,
        )

    def columns(self) -> dict[str, Any]:
        """The parts as columns of a row, with their common digest as ``comparability``."""
        parts = asdict(self) | {"editions": list(self.editions)}
        return parts | {"comparability": _digest(parts)[:16]}


def view_of(spec: TrialSpec) -> str:
    """``reference``, ``actual``, or ``either`` where both views feed the same.

    Specs of releases that did not record it: topography was fed under the names of bands if any of it was fed.
    """
    if spec.view is not None:
        return spec.view
    sources = [source for sources in spec.encoder.feed.inputs.values() for source in sources if source]
    return "reference" if any(source.group == "ancillary" for source in sources) else "either"


def _short(value: object) -> str:
    return _digest(value)[:8]


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
