"""What Tune tells the driver while a sweep runs, passed on to progress and reconciling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune

from cryobench.orchestrator.results.background import BackgroundReconciler
from cryobench.orchestrator.sweep.observer import SweepObserver
from cryobench.orchestrator.sweep.progress import SweepProgress
from cryobench.workers.record.events import event_of

#: What Ray says of a worker whose process is gone, rather than of an exception in it.
_DIED = ("ActorDiedError", "The actor died", "worker died", "WorkerCrashedError", "ActorUnavailableError")


class Watcher(tune.Callback):
    """Passes news on, and has recorded what a worker that died could not.

    Args:
        progress: the live table.
        reconciler: is told which trials have news.
        record_crash: writes into a trial's folder that its retries are used up, and says what is known then.
        observer: the sweep's log and metrics.
    """

    def __init__(
        self,
        progress: SweepProgress,
        reconciler: BackgroundReconciler,
        record_crash: Callable[[str, str], str],
        observer: SweepObserver,
    ) -> None:
        self._progress, self._reconciler, self._record_crash = progress, reconciler, record_crash
        self._observer = observer

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles its callbacks with its state, to restore from; the folders are what we restore from."""
        return tune.Callback, ()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A worker reported an event."""
        self._progress.tell(trial.config["trial"], event_of(result))
        self._observer.tell(trial.config["trial"], event_of(result))
        self._reconciler.note([trial.config["trial"]])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A worker died and the trial is tried again."""
        self._progress.recover(trial.config["trial"], trial.num_failures)
        why = explain_crash(trial.get_error(), trial.num_failures)
        self._observer.recover(trial.config["trial"], trial.num_failures, why)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The retries are used up."""
        trial_id = trial.config["trial"]
        message = explain_crash(trial.get_error(), trial.num_failures)
        known = self._record_crash(trial_id, message)
        self._progress.end(trial_id, "failed", known)
        self._observer.end(trial_id, "failed", message=known)
        self._reconciler.note([trial_id])


def explain_crash(recorded: str | None, times: int) -> str:
    """In one message, what Ray recorded of a trial's failures (the text of all of them, the last one last)."""
    last = (recorded or "").rpartition("Failure #")[2]
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    again = "Running the sweep again continues the trial from its last checkpoint."
    if "running low on memory" in last:
        return f"The node ran low on memory and Ray ended the worker process, {times} times. {again}"
    if not lines or any(word in last for word in _DIED):
        return f"The worker process died {times} times (killed, or a crash in a library). {again}"
    return f"The worker failed {times} times, the last time with: {lines[-1][:500]}. {again}"
