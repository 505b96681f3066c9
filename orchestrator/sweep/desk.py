"""Where the workers of a sweep ask: an actor that the driver tells what they should know, on whatever node they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Answer = Literal["run", "elsewhere", "ended"]


@dataclass(frozen=True)
class Word:
    """What a worker is to do with its trial: ``leave`` it, to go on later; or give it up, ``pruned`` says why."""

    leave: bool = False
    pruned: str | None = None


class Desk:
    """Knows whether all should leave, which nodes get no more trials, and which trials are given up or pruned."""

    def __init__(self) -> None:
        self._leave = False
        self._avoided: set[str] = set()
        self._given_up: set[str] = set()
        self._pruned: dict[str, str] = {}

    def say_leave(self) -> None:
        """All workers save and leave."""
        self._leave = True

    def prune(self, trial: str, why: str) -> None:
        """A trial is not trained to its end: whoever runs it saves it and leaves it."""
        self._pruned[trial] = why

    def word_about(self, trial: str) -> Word:
        """What its worker is to do."""
        return Word(self._leave, self._pruned.get(trial))

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
