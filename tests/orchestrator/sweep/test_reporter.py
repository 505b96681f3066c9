"""What workers tell the driver, and how often."""

from typing import Any

from cryobench.orchestrator.sweep.reporter import Reporter
from cryobench.workers.record.events import (
    AttemptStarted,
    Ended,
    EpochFinished,
    Finished,
    Note,
    Placed,
    Resumed,
    event_of,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def epoch(number: int, score: float | None = None) -> EpochFinished:
    return EpochFinished(epoch=number, loss=0.5, lr=1e-3, seconds=0.01, val_miou=score)


def test_eighty_quick_epochs_are_two_reports_and_the_last_score_is_in_them() -> None:
    sent: list[dict[str, Any]] = []
    clock = Clock()
    report = Reporter(sent.append, clock)
    report(Placed(node="n", host="h", pid=1, device="cpu"))
    report(AttemptStarted(host="h", pid=1, device="cpu", code="x"))  # the folder has it; no news for the driver
    for number in range(1, 81):
        report(epoch(number, 70.0 + number if number % 5 == 0 else None))
    report(Finished(status="completed"))
    report(Ended(status="completed", epochs=80))
    assert len(sent) == 2
    events = [event_of(plain) for plain in sent[1]["events"]]
    assert [event.event for event in events] == ["epoch", "ended"]
    assert sent[1]["training_iteration"] == 80
    assert sent[1]["validated"] == [{"epoch": n, "val_miou": 70.0 + n} for n in range(5, 81, 5)]


def test_slow_epochs_are_told_once_a_second_and_none_loses_its_score() -> None:
    sent: list[dict[str, Any]] = []
    clock = Clock()
    report = Reporter(sent.append, clock)
    report(epoch(1, 10.0))
    assert len(sent) == 1
    report(epoch(2, 20.0))
    report(epoch(3))
    report.flush_if_due()
    assert len(sent) == 1
    clock.now += 1.0
    report.flush_if_due()  # after a step, long before the next epoch ends
    assert len(sent) == 2
    told = [event_of(plain) for plain in sent[1]["events"]]
    assert [(e.epoch, e.val_miou) for e in told if isinstance(e, EpochFinished)] == [(2, 20.0), (3, None)]
    assert [one["validated"] for one in sent] == [[{"epoch": 1, "val_miou": 10.0}], [{"epoch": 2, "val_miou": 20.0}]]
    assert [one["training_iteration"] for one in sent] == [1, 3]


def test_a_trial_that_goes_on_has_no_score_before_it_is_validated_again() -> None:
    sent: list[dict[str, Any]] = []
    clock = Clock()
    report = Reporter(sent.append, clock)
    for event in (Placed(node="n", host="h", pid=1, device="cpu"), Resumed(epoch=7, step=3), epoch(8), epoch(9)):
        clock.now += 1.0
        report(event)
    clock.now += 1.0
    report(epoch(10, 60.0))
    assert [one["training_iteration"] for one in sent] == [0, 7, 8, 9, 10]
    assert [one["validated"] for one in sent] == [[], [], [], [], [{"epoch": 10, "val_miou": 60.0}]]


def test_notes_are_kept_in_order_whatever_comes_between() -> None:
    sent: list[dict[str, Any]] = []
    report = Reporter(sent.append, Clock())
    for event in (epoch(1), Note(message="one"), epoch(2), Note(message="two"), epoch(3), Ended(status="failed")):
        report(event)
    told = [plain["message"] for one in sent for plain in one["events"] if plain["event"] == "note"]
    assert told == ["one", "two"]
