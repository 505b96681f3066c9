"""A trial's folder as one pass over it finds it: each file is read once, however many ask for what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cryobench.conf.trial import TrialSpec
from cryobench.workers.record.events import Event
from cryobench.workers.record.folder import TrialFolder, TrialState
from cryobench.workers.record.result import TrialResult

Value = TypeVar("Value")


class TrialReading(TrialFolder):
    """A folder that is read only, and each part of it once. What could not be read raises the same every time."""

    def __init__(self, storage: Path, trial_id: str) -> None:
        super().__init__(storage, trial_id)
        self._read: dict[str, tuple[Any, Exception | None]] = {}

    def spec(self) -> TrialSpec:
        """See `TrialFolder.spec`."""
        return self._once("spec", super().spec)

    def events(self) -> list[Event]:
        """See `TrialFolder.events`."""
        return self._once("events", super().events)

    def result(self) -> TrialResult | None:
        """See `TrialFolder.result`."""
        return self._once("result", super().result)

    def state(self) -> TrialState:
        """See `TrialFolder.state`."""
        return self._once("state", super().state)

    def _plain_result(self) -> dict[str, Any]:
        return self._once("plain result", super()._plain_result)

    def _once(self, what: str, read: Callable[[], Value]) -> Value:
        if what not in self._read:
            try:
                self._read[what] = (read(), None)
            except Exception as error:
                self._read[what] = (None, error)
        value, trouble = self._read[what]
        if trouble is not None:
            raise trouble
        found: Value = value
        return found
