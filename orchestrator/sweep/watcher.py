"""What Tune tells the driver while a sweep runs, passed on to progress and projection."""

from __future__ import annotations

from typing import Any

from ray import tune

from cryobench.orchestrator.results.projection import LiveProjection
from cryobench.orchestrator.sweep.progress import SweepProgress


class Watcher(tune.Callback):
    """Passes news on, and records what a worker that died could not."""

    def __init__(self, progress: SweepProgress, projection: LiveProjection) -> None:
        self._progress, self._projection = progress, projection

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles its callbacks with its state, to restore from; the folders are what we restore from."""
        return tune.Callback, ()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A worker reported an event."""
        self._progress.tell(trial.config["trial"], result)
        self._projection.note([trial.config["trial"]])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A worker died and the trial is tried again."""
        self._progress.recover(trial.config["trial"], trial.num_failures)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The retries are used up."""
        message = (
            f"The worker process died {trial.num_failures} times (out of memory, or killed). "
            "Running the sweep again continues the trial from its last checkpoint."
        )
        trial_id = trial.config["trial"]
        self._progress.end(trial_id, "failed", self._projection.failed(trial_id, message))
