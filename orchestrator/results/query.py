"""Selecting, querying and writing out leaderboard rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cryobench.conf.errors import ConfigError, UnknownNameError
from cryobench.orchestrator.sweep_record import read_sweep


def keep(rows: pa.Table, storage: Path, sweep: str | None, regime: str | None) -> pa.Table:
    """The rows of one sweep (also trials that another sweep ran first) and one regime."""
    if sweep is not None:
        rows = rows.filter(pc.is_in(rows["trial_id"], pa.array(read_sweep(storage, sweep).trials, pa.string())))
    if regime is not None:
        known = set(rows["regime"].to_pylist())
        if regime not in known:
            raise UnknownNameError("regime in this leaderboard", regime, known)
        rows = rows.filter(pc.equal(rows["regime"], regime))
    return rows


def run_sql(rows: pa.Table, query: str) -> pa.Table:
    """The result of a query over the table ``leaderboard``; it can neither read nor write files.

    Raises:
        ConfigError: the query is wrong; DuckDB's message says where.
    """
    import duckdb

    connection = _connection()
    connection.register("leaderboard", rows)
    connection.execute("SET enable_external_access = false")
    try:
        found = connection.sql(query)
    except duckdb.Error as error:
        raise ConfigError(
            f"The query cannot be run: {error}. The table is 'leaderboard', with the columns "
            f"{', '.join(rows.column_names)}."
        ) from error
    if found is None:
        raise ConfigError("The query returns no rows of its own; give a SELECT over the table 'leaderboard'.")
    return found.to_arrow_table()


def select(query: str, cells: list[dict[str, Any]], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one of the program's own queries over the table ``cells``."""
    with _own_connection().cursor() as connection:
        connection.register("cells", pa.Table.from_pylist(cells))
        found: list[dict[str, Any]] = connection.sql(query, params=dict(values)).to_arrow_table().to_pylist()
        return found


@cache
def _own_connection() -> Any:
    """One for all own queries: opening it takes longer than any of them."""
    return _connection()


def _connection() -> Any:
    import duckdb

    return duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})


def rendered(rows: pa.Table, form: str, output: str | None) -> None:
    """Write rows as csv, json, markdown or parquet to ``output`` or standard output."""
    if form == "parquet":
        import pyarrow.parquet as pq

        if output is None:
            raise ConfigError("--format parquet needs --output FILE: it is binary.")
        with _written_to(output):
            pq.write_table(rows, output)
        return
    text = {"csv": _csv, "json": _json, "markdown": _markdown, "table": _csv}[form](rows)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)


def write_text(path: str, text: str) -> None:
    """Text into a file.

    Raises:
        ConfigError: it cannot be written there.
    """
    with _written_to(path):
        Path(path).write_text(text)


@contextmanager
def _written_to(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"Cannot write {path} ({error}). Give a file in a folder that exists.") from error


def _csv(rows: pa.Table) -> str:
    import csv
    import io

    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(rows.column_names)
    writer.writerows([_flat(value) for value in row.values()] for row in rows.to_pylist())
    return target.getvalue()


def _json(rows: pa.Table) -> str:
    import json

    return json.dumps(rows.to_pylist(), indent=1, default=str) + "\n"


def _markdown(rows: pa.Table) -> str:
    lines = ["| " + " | ".join(rows.column_names) + " |", "|---" * rows.num_columns + "|"]
    lines += ["| " + " | ".join(str(_flat(value)) for value in row.values()) + " |" for row in rows.to_pylist()]
    return "\n".join(lines) + "\n"


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return ";".join("=".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
    return "" if value is None else value
