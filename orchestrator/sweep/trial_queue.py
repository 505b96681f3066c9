"""Gives Tune one trial after another, in the order in which they are to be run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.search import Searcher


class TrialQueue(Searcher):
    """The trials of a sweep, by their ids.

    Tune's own grid writes all trials out before the first begins, and copies the whole grid for each: of 5,000 that
    takes it eight seconds.

    Args:
        trials: their ids.
        leaving: whether nothing new is to begin any more.
    """

    def __init__(self, trials: Iterable[str], leaving: Callable[[], bool]) -> None:
        super().__init__()
        self._trials, self._leaving = deque(trials), leaving

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles it with its state, to restore from; the folders are what we restore from."""
        return Searcher, ()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """What is run was settled before."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """What Tune runs next as ``trial_id``."""
        if self._leaving() or not self._trials:
            return str(Searcher.FINISHED)
        return {"trial": self._trials.popleft()}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: who runs the sweep is told by other ways."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folders and the record of suggestions are what a sweep is gone on with from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as with `save`."""
