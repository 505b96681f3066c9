"""Where the workers of a sweep ask: an actor that the driver tells what they should know, on whatever node they are."""

from __future__ import annotations

from typing import Literal

Answer = Literal["run", "elsewhere", "ended"]


class Desk:
    """Knows whether all should leave, which nodes get no more trials, and which trials are given up."""

    def __init__(self) -> None:
        self._leave = False
        self._avoided: set[str] = set()
        self._given_up: set[str] = set()

    def say_leave(self) -> None:
        """All workers save and leave."""
        self._leave = True

    def leave_was_said(self) -> bool:
        """Whether all should leave."""
        return self._leave

    def avoid(self, node: str) -> None:
        """Nothing begins on this node any more; what runs there goes on."""
        self._avoided.add(node)

    def give_up(self, trial: str) -> None:
        """A trial is not tried again in this sweep, although Tune would."""
        self._given_up.add(trial)

    def may_begin(self, trial: str, node: str) -> Answer:
        """What a worker on ``node`` does with a trial that Tune gave it."""
        if trial in self._given_up or self._leave:
            return "ended"
        return "elsewhere" if node in self._avoided else "run"
