"""Any file of a storage damaged in any way: every command answers, and what is not concerned stays as it was."""

import sqlite3
from pathlib import Path

import pytest
from hostile import DAMAGES, Terminal

from cryobench.orchestrator.results.leaderboard import read_leaderboard
from cryobench.workers.record.folder import TrialFolder, all_trials

TRIAL_FILES = ("result.json", "spec.json", "events.jsonl", "state.json", "test_confusion.npy")
FILES = (*TRIAL_FILES, "leaderboard.parquet", "row.parquet", "first.json", "storage.json", "mlflow.db")


def finished(storage: Path) -> list[TrialFolder]:
    return [folder for folder in all_trials(storage) if (folder.path / "result.json").exists()]


def place_of(storage: Path, name: str) -> Path:
    trial = finished(storage)[0]
    return {
        "leaderboard.parquet": storage / "leaderboard" / name,
        "row.parquet": storage / "leaderboard" / "trials" / f"{trial.trial_id}.parquet",
        "first.json": storage / "sweeps" / name,
        "storage.json": storage / name,
        "mlflow.db": storage / name,
    }.get(name, trial.path / name)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_sync_says_it_and_the_rest_is_right(storage: Path, terminal: Terminal, name: str, damage: str) -> None:
    before = {row["trial_id"]: row["test_miou"] for row in read_leaderboard(storage).to_pylist()}
    path = place_of(storage, name)
    if not path.exists():
        path.write_text("{}")
    DAMAGES[damage](path)
    answer = terminal.run("sync", "--storage", str(storage), "--tracking-uri", "none")
    assert answer.is_clear(), answer
    if name in ("leaderboard.parquet", "row.parquet", "first.json", "storage.json") and damage == "a folder":
        return  # said; what a user put there is the user's to remove
    after = {row["trial_id"]: row["test_miou"] for row in read_leaderboard(storage).to_pylist()}
    mine = path.parent.name if name in TRIAL_FILES else None
    assert {t: v for t, v in after.items() if t != mine} == {t: v for t, v in before.items() if t != mine}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_every_command_answers(storage: Path, terminal: Terminal, name: str, damage: str) -> None:
    one, other = (folder.trial_id for folder in finished(storage)[:2])
    path = place_of(storage, name)
    if not path.exists():
        path.write_text("{}")
    DAMAGES[damage](path)
    at, data = ("--storage", str(storage)), ("--data-dir", str(storage.parent / "data"))
    for command in (
        ("leaderboard", *at),
        ("leaderboard", "--sql", "select count(*) from trials", *at),
        ("status", "first", *at),
        ("trial", "show", one, *at),
        ("logs", one, *at),
        ("prune", "first", *at),
        ("compare", one, other, *at),
        ("plan", "sweep=demo", *at, *data),
        ("sync", *at),
    ):
        answer = terminal.run(*command)
        assert answer.is_clear(), (command, answer)


def test_a_database_of_something_else_is_left_alone(storage: Path, terminal: Terminal) -> None:
    (storage / "mlflow.db").unlink()
    with sqlite3.connect(storage / "mlflow.db") as database:
        database.execute("create table mine (x int)")
        database.execute("insert into mine values (7)")
    answer = terminal.run("sync", "--storage", str(storage))
    assert answer.is_clear(), answer
    with sqlite3.connect(storage / "mlflow.db") as database:
        assert database.execute("select x from mine").fetchall() == [(7,)]
