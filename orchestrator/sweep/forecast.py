"""What a plan will take: hours and memory as recorded here, and durations for a simulation, recorded or estimated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.sweep.expected_cost import CostBook
from cryobench.orchestrator.sweep.gpu_share import share_for
from cryobench.orchestrator.sweep.throughput import CARDS, Card, MultiplyAdds, card_named, seconds_estimated
from cryobench.orchestrator.sweep.trial_maker import PlannedTrial

Source = Literal["recorded", "scaled", "estimated", "unknown"]


@dataclass(frozen=True)
class Forecast:
    """Hours of the trials that are left, one device each, on the device on which most was recorded; ``known`` of
    ``left`` have such a record. ``memory_mb``: the largest recorded peak among them, of the trial ``memory_of``.
    ``shares``: how many trials get which part of a GPU, by the memory recorded on a known card; the others begin with
    a whole one, and the first of each kind is measured.
    """

    left: int
    known: int
    hours: float
    device: str | None
    memory_mb: float | None
    memory_of: str | None
    shares: dict[float, int]

    def as_json(self) -> dict[str, Any]:
        """The plain form for ``--json``."""
        return asdict(self)


def forecast(trials: Sequence[PlannedTrial], book: CostBook) -> Forecast:
    """What is recorded of the trials that a sweep would run now."""
    devices = book.devices()
    device = devices[0] if devices else None
    times: dict[tuple[object, ...], tuple[float | None, float | None]] = {}
    seconds, known, largest, largest_of = 0.0, 0, 0.0, None
    shares: Counter[float] = Counter()
    for trial in trials:
        spec = trial.spec
        key = (spec.encoder.name, spec.dataset.name, spec.regime.name, spec.protocol)
        if key not in times:
            times[key] = (book.seconds(spec, lambda found: found == device), book.memory_mb(spec))
        takes, memory = times[key]
        if takes is not None:
            known += 1
            seconds += takes * _left(trial)
        if memory is not None and memory > largest:
            largest, largest_of = memory, f"{spec.encoder.name} · {spec.dataset.name} · {spec.regime.name}"
        if (share := _gpu_share(spec, book)) is not None:
            shares[share] += 1
    by_size = dict(sorted(shares.items(), reverse=True))
    return Forecast(len(trials), known, seconds / 3600, device, largest or None, largest_of, by_size)


def _gpu_share(spec: TrialSpec, book: CostBook) -> float | None:
    """The part of a GPU that a trial will get, where its memory was recorded on a card that is known."""
    for entry in book.recorded(spec):
        card = next((card for card in CARDS.values() if card.memory_gb and card.is_device(entry.device)), None)
        if card is not None and entry.memory_mb:
            return share_for(entry.memory_mb, card.memory_gb * 1000)
    return None


class Durations:
    """How long trials take on a card: as recorded on it, else as recorded on another and scaled by their peaks, else
    by multiply-adds. ``sources`` counts the trials by where their durations are from.
    """

    def __init__(self, book: CostBook, counts: MultiplyAdds) -> None:
        self._book, self._counts = book, counts
        self._known: dict[tuple[object, ...], tuple[float, Source]] = {}
        self.sources: Counter[Source] = Counter()

    def known(self, trials: Sequence[PlannedTrial], card: str) -> list[PlannedTrial]:
        """Those of which anything can be said; counts all of them."""
        sources = [(trial, self._of(trial.spec, card_named(card))[1]) for trial in trials]
        self.sources = Counter(source for _, source in sources)
        return [trial for trial, source in sources if source != "unknown"]

    def seconds(self, trial: PlannedTrial, card: str) -> float:
        """What is left of a trial, in seconds on ``card``."""
        return self.seconds_of(trial.spec, card) * _left(trial)

    def seconds_of(self, spec: TrialSpec, card: str) -> float:
        """All of a trial, in seconds on ``card``."""
        return self._of(spec, card_named(card))[0]

    def _of(self, spec: TrialSpec, card: Card) -> tuple[float, Source]:
        key = (spec.encoder.name, spec.dataset.name, spec.regime.name, spec.protocol, card.name)
        if key not in self._known:
            self._known[key] = self._find(spec, card)
        return self._known[key]

    def _find(self, spec: TrialSpec, card: Card) -> tuple[float, Source]:
        recorded = self._book.seconds(spec, card.is_device)
        if recorded is not None:
            return recorded, "recorded"
        precision = spec.protocol.precision
        for other in CARDS.values():
            if other.name != "CPU" and card.name != "CPU":  # a core and a GPU have nothing in common
                elsewhere = self._book.seconds(spec, other.is_device)
                if elsewhere is not None:
                    return elsewhere * getattr(other, precision) / getattr(card, precision), "scaled"
        tiles, info = self._book.training_tiles(spec), self._book.store(spec)
        if tiles is None or info is None:
            return 0.0, "unknown"
        gmacs = self._book.gmacs(spec) or self._counts.of(spec, info)
        if gmacs is None:
            return 0.0, "unknown"
        return seconds_estimated(spec, tiles, info, gmacs, card), "estimated"


def _left(trial: PlannedTrial) -> float:
    return max(0.0, 1 - trial.epoch / trial.spec.protocol.epochs)
