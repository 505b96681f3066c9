"""The load that a trial noted, as MLflow shows it under "System metrics"."""

from __future__ import annotations

from collections.abc import Iterable

from cryobench.workers.record.events import Event, SystemLoad


def loads_of(events: Iterable[Event]) -> list[SystemLoad]:
    """A trial's load samples, in order."""
    return [event for event in events if isinstance(event, SystemLoad)]


def load_metrics(samples: Iterable[SystemLoad], first: int) -> list[tuple[str, float, int, int]]:
    """Name, value, time in milliseconds and step of what the samples hold; the first of them is number ``first``."""
    return [
        (f"system/{name}", value, int(sample.time * 1000), number)
        for number, sample in enumerate(samples, start=first)
        for name, value in sorted(sample.values.items())
    ]
