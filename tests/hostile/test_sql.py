"""Queries over the leaderboard that ask for more than its rows: refused with one message, or harmless."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import Terminal

from cryobench.orchestrator.results import query

SECRET = "what the file holds"

REFUSED = {
    "read_text": "select * from read_text('{file}')",
    "read_blob": "select * from read_blob('{file}')",
    "read_csv": "select * from read_csv('{file}')",
    "read_json": "select * from read_json('{file}')",
    "read_parquet": "select * from read_parquet('{file}')",
    "parquet_metadata": "select * from parquet_metadata('{file}')",
    "sniff_csv": "select * from sniff_csv('{file}')",
    "glob": "select * from glob('{folder}/*')",
    "a file as a table": "select * from '{file}'",
    "a file in a cte": "with x as (select content from read_text('{file}')) select * from x",
    "a file in query()": "select * from query('select * from read_text(''{file}'')')",
    "secrets": "select * from duckdb_secrets()",
    "environment": "select getenv('HOME')",
    "variables of this program": "select * from rows",
    "copy to": "copy leaderboard to '{folder}/made.csv'",
    "copy from": "copy leaderboard from '{file}'",
    "export": "export database '{folder}/made'",
    "attach": "attach '{folder}/made.db'",
    "detach": "detach memory",
    "install": "install httpfs",
    "load": "load httpfs",
    "load a file": "load '{file}'",
    "pragma": "pragma database_list",
    "set": "set threads=1",
    "set access": "set enable_external_access=true",
    "reset access": "reset enable_external_access",
    "home": "set home_directory='{folder}'",
    "call": "call pragma_version()",
    "create": "create table x as select 1",
    "drop": "drop view leaderboard",
    "delete": "delete from leaderboard",
    "two": "select 1; select 2",
    "two of which one writes": "copy leaderboard to '{folder}/made.csv'; select 1",
    "explain a write": "explain analyze copy leaderboard to '{folder}/made.csv'",
    "nothing": "",
    "a comment": "-- nothing",
    "half": "select '",
    "no SQL": "\\x00\\xff ☃",
    "fails while it runs": "select cast(trial_id as int) from leaderboard",
    "raises": "select error('x')",
    "one name twice": "select 1 as a, 2 as a",
    "a day before all days": "select '-5000-01-01'::date as x",
    "a day after all days": "select 'infinity'::date as x",
    "deep": "select " + "(" * 5000 + "1" + ")" * 5000,
    "long": "select " + "1+" * 200_000 + "1",
    "too many rows": "select * from range(1000000000000)",
    "too large a value": "select repeat('x', 2000000000)",
    "without an end": "with recursive t(x) as (select 1 union all select x+1 from t) select count(*) from t",
}

SHOWN = {
    "markup": ("select '[/]' as \"[/bold]\"", "[/]"),
    "types": ("select {{'a': 1}} as s, [1] as l, interval 1 day as i, 1::hugeint as h, '1'::bit as b", "{'a': 1}"),
    "union": ("select union_value(a:=1) as u", "1"),
    "pivot": ("pivot (select status from leaderboard) on status using count(*)", "completed"),
    "summary": ("summarize leaderboard", "trial_id"),
    "no rows": ("select trial_id from leaderboard where false", "trial_id"),
    "endless numbers": ("select 'nan'::double as n, '-inf'::double as m", "nan"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_query_is_refused(
    storage: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    monkeypatch.setattr(query, "_QUERY_S", 2.0)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file.csv").write_text(SECRET)
    sql = REFUSED[what].format(file=folder / "file.csv", folder=folder)
    answer = terminal.run("leaderboard", "--storage", str(storage), "--sql", sql)
    assert answer.is_clear(), answer
    assert answer.code == 2
    assert answer.text.startswith("Error: ")
    assert SECRET not in answer.text.replace(sql, "")
    assert [path.name for path in folder.iterdir()] == ["file.csv"]


@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
@pytest.mark.parametrize("what", SHOWN)
def test_a_query_is_answered(storage: Path, terminal: Terminal, what: str, form: str) -> None:
    sql, said = SHOWN[what][0].format(), SHOWN[what][1]
    answer = terminal.run("leaderboard", "--storage", str(storage), "--sql", sql, "--format", form)
    assert answer.is_clear(), answer
    assert answer.code in (None, 0)
    if form == "table":
        assert said in answer.text


@pytest.mark.parametrize("sql", ["select interval 1 day as i", "select union_value(a:=1) as u"])
def test_a_type_that_parquet_lacks_leaves_the_file_as_it_was(
    storage: Path, terminal: Terminal, tmp_path: Path, sql: str
) -> None:
    target = tmp_path / "out.parquet"
    target.write_text("mine")
    answer = terminal.run(
        "leaderboard", "--storage", str(storage), "--sql", sql, "--format", "parquet", "-o", str(target)
    )
    assert answer.is_clear(), answer
    assert answer.code == 2
    assert "Parquet has no place" in answer.text
    assert target.read_text() == "mine"


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown", "parquet"])
@pytest.mark.parametrize("sql", [(), ("--sql", "select 1 as x")])
@pytest.mark.parametrize("place", ["missing/out", "", "file/out", "/proc/out", "/dev/full", "x" * 4000, "loop"])
def test_an_output_that_cannot_be_written(
    storage: Path, terminal: Terminal, tmp_path: Path, place: str, sql: tuple[str, ...], form: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    arguments = ("--storage", str(storage), *sql, "--format", form, "-o", str(tmp_path / place))
    answer = terminal.run("leaderboard", *arguments)
    assert answer.is_clear(), answer
    assert answer.code in (1, 2)
    assert answer.text.startswith("Error: ")


def test_the_process_ends_well_after_a_query(storage: Path) -> None:
    """DuckDB's threads once aborted an interpreter that was ending, after every third query."""
    run = "import sys; from cryobench.orchestrator import cli; cli.main()"
    sql = ["leaderboard", "--storage", str(storage), "--sql", "select * from leaderboard", "--json"]
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", run, *sql], capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
