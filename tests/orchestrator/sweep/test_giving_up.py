"""A trial that the driver gives up: what its worker is told, does, and reports; and what the driver shows of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cryobench.conf.errors import StoppedEarlyError
from cryobench.conf.trial import TrialSpec
from cryobench.orchestrator.sweep import trainable
from cryobench.orchestrator.sweep.desk import Desk
from cryobench.orchestrator.sweep.progress import SweepProgress
from cryobench.orchestrator.sweep.software import Software
from cryobench.orchestrator.sweep.trainable import SweepTerms
from cryobench.workers.place import Place
from cryobench.workers.record.events import Diverged, Ended, EpochFinished, Event, Resumed, event_of


def test_a_word_is_about_one_trial_and_leaving_about_all() -> None:
    desk = Desk()
    assert (desk.word_about("a").leave, desk.word_about("a").pruned) == (False, None)
    desk.prune("a", "behind")
    assert desk.word_about("a").pruned == "behind"
    assert desk.word_about("b").pruned is None
    assert desk.may_begin("a", "node") == "run"  # whoever gets it next hears the word there
    desk.say_leave()
    assert desk.word_about("b").leave
    assert (desk.word_about("a").leave, desk.word_about("a").pruned) == (True, "behind")


class Local:
    """The desk as an actor's handle, without an actor: a method's answer is the answer."""

    def __init__(self) -> None:
        self.desk = Desk()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.desk, name)
        return type("Method", (), {"remote": staticmethod(method)})


class Reference(dict[str, str]):
    """Stands for what Ray holds."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@dataclass
class Worker:
    """`_run_in_worker` without Ray; ``run`` stands for the trial."""

    place: Place
    spec: TrialSpec
    sent: list[Event] = field(default_factory=list)
    desk: Local = field(default_factory=Local)

    def go(self, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, config: dict[str, str]) -> None:
        monkeypatch.setattr(trainable, "_ASK_EVERY_S", 0.01)
        monkeypatch.setattr(trainable.ray, "get", lambda value, timeout=None: value)
        monkeypatch.setattr(trainable.ray, "get_gpu_ids", list)
        context = type("Context", (), {"get_node_id": staticmethod(lambda: "n")})
        monkeypatch.setattr(trainable.ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(trainable.tune, "report", lambda plain: self.sent.extend(map(event_of, plain["events"])))
        terms = SweepTerms(
            place=self.place,
            specs=Reference({self.spec.trial_id: self.spec.model_dump_json()} if "spec" not in config else {}),
            desk=self.desk,
            software=Software.here(),
            mark=None,
            run=run,
        )
        trainable._run_in_worker(config, terms)


@pytest.fixture
def worker(place: Place, one_trial: Any) -> Worker:
    return Worker(place, one_trial())


def until_asked(should_stop: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not should_stop() and time.monotonic() < deadline:
        time.sleep(0.01)
    return should_stop()


def test_a_worker_hears_that_its_trial_is_given_up_and_reports_it_pruned(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(spec: TrialSpec, *_: Any, report: Any, should_stop: Any, given_up: Any, **__: Any) -> Any:
        report(EpochFinished(epoch=1, loss=1.0, lr=1e-3, seconds=1.0, val_miou=5.0))
        assert not should_stop()
        worker.desk.desk.prune(spec.trial_id, "behind")
        assert until_asked(should_stop)
        raise StoppedEarlyError(given_up())

    worker.go(run, monkeypatch, {"trial": worker.spec.trial_id})
    ended = worker.sent[-1]
    assert isinstance(ended, Ended)
    assert (ended.status, ended.message) == ("pruned", "behind")


@pytest.mark.parametrize(
    "last",
    [
        EpochFinished(epoch=3, loss=1.0, lr=1e-3, seconds=1.0, val_miou=5.0),
        Resumed(epoch=3, step=0),
        Diverged(epoch=2),
    ],
)
def test_a_trial_that_is_only_left_to_be_tested_is_not_given_up(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, last: Event
) -> None:
    def run(spec: TrialSpec, *_: Any, report: Any, should_stop: Any, given_up: Any, **__: Any) -> Any:
        assert spec.protocol.epochs == 3
        worker.desk.desk.prune(spec.trial_id, "behind")
        assert until_asked(should_stop)
        report(last)
        assert not should_stop()
        assert given_up() is None
        worker.desk.desk.say_leave()  # which it still hears
        assert until_asked(should_stop)
        assert given_up() is None
        return type("Result", (), {"status": "completed", "epochs": 3})

    worker.go(run, monkeypatch, {"trial": worker.spec.trial_id})
    assert isinstance(worker.sent[-1], Ended)
    assert worker.sent[-1].status == "completed"


def test_a_suggested_trial_comes_with_its_own_spec(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    suggested = worker.spec.model_copy(update={"lr": 3.21e-4})
    ran: list[TrialSpec] = []

    def run(spec: TrialSpec, *_: Any, **__: Any) -> Any:
        ran.append(spec)
        return type("Result", (), {"status": "completed", "epochs": 3})

    worker.go(run, monkeypatch, {"trial": suggested.trial_id, "spec": suggested.model_dump_json()})
    assert ran == [suggested]
    assert ran[0].trial_id == suggested.trial_id


def test_progress_counts_what_is_pruned_and_what_is_suggested(one_trial: Any) -> None:
    spec, console = one_trial(), Console(record=True, width=200)
    progress = SweepProgress(console, {spec.trial_id: spec}, {}, total=2, already=0, to_come=1)
    progress.tell(spec.trial_id, EpochFinished(epoch=1, loss=1.0, lr=1e-3, seconds=1.0, val_miou=5.0))
    progress.tell(spec.trial_id, Ended(status="pruned", message="asha: behind"))
    more = spec.model_copy(update={"lr": 5e-4})
    progress.add(more)
    progress.tell(more.trial_id, Ended(status="completed"))
    said = console.export_text()
    assert "[1/2]" in said
    assert "pruned, validation mIoU 5.00 (asha: behind); " in said
    assert "[2/2]" in said
    assert (progress.counts["pruned"], progress.counts["completed"]) == (1, 1)
    assert progress.finished() == {spec.trial_id, more.trial_id}  # neither is left for later
    assert not progress.interrupted()


def test_the_gauge_and_the_log_say_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryobench.orchestrator.sweep import observer
    from cryobench.orchestrator.sweep.sweep_log import SweepLog, lines_about

    shown: list[dict[str, int]] = []
    gauge = type("Gauge", (), {"__init__": lambda self, sweep: None, "show": lambda self, n: shown.append(dict(n))})
    monkeypatch.setattr(observer, "TrialGauge", gauge)
    watching = observer.SweepObserver(SweepLog(tmp_path, "s"), "s", {"a": "waiting"})
    watching.add("b")
    watching.tell("a", Ended(status="pruned", message="asha: behind"))
    assert (shown[-1]["pruned"], shown[-1]["waiting"]) == (1, 1)
    (line,) = lines_about(tmp_path, "a")
    assert (line["event"], line["status"], line["message"]) == ("ended", "pruned", "asha: behind")
    assert [line["event"] for line in lines_about(tmp_path, "b")] == ["suggested"]
