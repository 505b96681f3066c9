"""Events on disk: written in one form for good, read whatever is there."""

import json
from pathlib import Path

from cryobench.workers.record.events import (
    AttemptStarted,
    Decoding,
    EpochFinished,
    Failed,
    UnknownEvent,
    event_of,
)
from cryobench.workers.record.folder import EVENTS, TrialFolder


def test_an_event_is_written_in_the_form_of_the_first_release(tmp_path: Path) -> None:
    folder = TrialFolder.at(tmp_path)
    recorded = folder.record(EpochFinished(epoch=1, loss=0.5, lr=1e-3, seconds=2.0))
    folder.record(EpochFinished(epoch=2, loss=0.5, lr=1e-3, seconds=2.0, val_miou=50.0))
    lines = [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert list(lines[0]) == ["event", "time", "epoch", "loss", "lr", "seconds"]
    assert lines[0]["event"] == "epoch"
    assert lines[0]["time"] == recorded.time > 1e9
    assert "val_miou" in lines[1]
    assert folder.epochs()[0] == recorded


def test_an_event_survives_being_carried() -> None:
    for event in (Failed(kind="crashed", message="x"), Decoding(decoded=1, tiles=2)):
        assert event_of({**event.plain(), "training_iteration": 3}) == event


def test_a_line_that_nobody_knows_harms_nothing(tmp_path: Path) -> None:
    lines = [
        {"event": "attempt", "time": 1.0, "host": "a", "pid": 1, "device": "cpu", "code": "0", "later": True},
        {"event": "of a later release", "time": 2.0, "value": 3},
        {"event": "epoch", "time": 3.0},
        {"event": "epoch", "time": 3.0, "epoch": [], "loss": "x", "lr": None, "seconds": {}},
        {"no": "event"},
        {"event": ["a"], "time": "b"},
    ]
    (tmp_path / EVENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = TrialFolder.at(tmp_path)
    events = folder.events()
    assert isinstance(events[0], AttemptStarted)
    assert all(isinstance(event, UnknownEvent) for event in events[1:])
    assert [event.plain() for event in events[1:]] == lines[1:]
    assert events[1].event == "of a later release"
    assert folder.epochs() == []
    assert folder.state().status == "begun"
