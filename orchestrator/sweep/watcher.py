"""What Tune tells the driver while a sweep runs, passed on to progress, reconciling and the failure policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune

from cryobench.orchestrator.results.background import BackgroundReconciler
from cryobench.orchestrator.sweep.cluster_nodes import ClusterNodes
from cryobench.orchestrator.sweep.failure_policy import (
    CRASHED,
    LOST_NODE,
    LOW_MEMORY,
    LOW_MEMORY_WORDS,
    PREEMPTED,
    FailurePolicy,
    Node,
    Verdict,
)
from cryobench.orchestrator.sweep.observer import SweepObserver
from cryobench.orchestrator.sweep.placement import Placement
from cryobench.orchestrator.sweep.progress import SweepProgress
from cryobench.workers.record.events import Ended, Event, Placed, Stumbled, event_of

#: What Ray says of a worker whose process is gone, rather than of an exception in it.
_DIED = ("ActorDiedError", "The actor died", "worker died", "WorkerCrashedError", "ActorUnavailableError")
_LOST = ("its node has died", "node was terminated", "The node is dead", "node died")


@dataclass
class Watcher(tune.Callback):
    """Passes news on, and has the policy decide what becomes of a trial whose attempt failed.

    Args:
        progress: the live table.
        reconciler: is told which trials have news.
        observer: the sweep's log and metrics.
        policy: decides.
        placement: is told where a trial shall not go again.
        nodes: of the cluster.
        desk: the handle of the `Desk`, which the workers ask.
        record_failure: writes into a trial's folder how it ended (trial, kind, message), and returns what is known.
    """

    progress: SweepProgress
    reconciler: BackgroundReconciler
    observer: SweepObserver
    policy: FailurePolicy
    placement: Placement
    nodes: ClusterNodes
    desk: Any
    record_failure: Callable[[str, str, str], str]
    _node_of: dict[str, Node] = field(default_factory=dict)
    _word_of: dict[str, Stumbled] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles its callbacks with its state, to restore from; the folders are what we restore from."""
        return tune.Callback, ()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A worker reported events."""
        name = trial.config["trial"]
        for plain in result.get("events", ()):
            self._take(name, event_of(plain))
        self.reconciler.note([name])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """An attempt failed; Tune has put the trial back into its queue."""
        name = trial.config["trial"]
        verdict = self._judge(name, trial.get_error())
        if verdict.goes_on:
            self.placement.keep_from(name, verdict.avoid)
        else:  # Tune would try for ever: the worker that gets the trial next is told that it has ended
            ray.get(self.desk.give_up.remote(name))
        trial.update_resources(self.placement.request(name, anywhere=not verdict.goes_on))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A worker could not even be started; a trial that goes on is taken up by the next round."""
        self._judge(trial.config["trial"], trial.get_error())

    def _take(self, trial: str, event: Event) -> None:
        self.observer.tell(trial, event)
        if isinstance(event, Placed):
            self._node_of[trial] = self.nodes.node(event.node)
            if event.device_memory_mb is not None:
                self.placement.shares.saw_device(event.device_memory_mb)
        elif isinstance(event, Stumbled):
            self._word_of[trial] = event
            return
        elif isinstance(event, Ended) and event.status in ("completed", "diverged", "pruned"):
            if trial in self._node_of:
                self.policy.finished_on(self._node_of[trial])
            self.placement.shares.learn([trial])
        self.progress.tell(trial, event)

    def _judge(self, trial: str, recorded: str | None) -> Verdict:
        node = self._node_of.pop(trial, None)
        kind, message = self._what_happened(trial, recorded, node)
        verdict = self.policy.judge(trial, kind, node, message)
        if verdict.condemned is not None:
            ray.get(self.desk.avoid.remote(verdict.condemned.id))
            text = f"Node {verdict.condemned.name} gets no more trials of this sweep: {message}"
            self.progress.say(text)
            self.observer.warn(text)
        if verdict.goes_on:
            self.progress.recover(trial, verdict.why)
            self.observer.recover(trial, verdict.why)
        else:
            text = message if kind not in (CRASHED, LOW_MEMORY) else f"{verdict.why}. {_AGAIN}"
            known = self.record_failure(trial, kind, text)
            self.progress.end(trial, "failed", known)
            self.observer.end(trial, "failed", kind, known)
        self.reconciler.note([trial])
        return verdict

    def _what_happened(self, trial: str, recorded: str | None, node: Node | None) -> tuple[str, str]:
        word, last = self._word_of.pop(trial, None), _last_failure(recorded)
        if word is not None:
            return word.kind, word.message
        if LOW_MEMORY_WORDS in last:
            return LOW_MEMORY, explain_crash(recorded)
        if "preempted" in last.lower():
            return PREEMPTED, "The machine was taken away."
        if any(words in last for words in _LOST) or (node and not self.nodes.is_there(node.id)):
            return LOST_NODE, "The node is gone."
        if "No module named 'cryobench'" in last:
            return "other_software", "cryobench is not installed there."
        return CRASHED, explain_crash(recorded)


_AGAIN = "Running the sweep again continues the trial from its last checkpoint."


def explain_crash(recorded: str | None) -> str:
    """In few words, what Ray recorded of a trial's last failure."""
    lines = [line.strip() for line in _last_failure(recorded).splitlines() if line.strip()]
    if any(LOW_MEMORY_WORDS in line for line in lines):
        return "the node ran low on memory and Ray ended the worker process"
    if not lines or any(word in line for line in lines for word in _DIED):
        return "the worker process died (killed, or a crash in a library)"
    return f"the worker failed with: {lines[-1][:500]}"


def _last_failure(recorded: str | None) -> str:
    return (recorded or "").rpartition("Failure #")[2]
