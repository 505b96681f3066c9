"""Selecting, querying and writing out leaderboard rows."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cryobench.conf.errors import ConfigError, UnknownNameError
from cryobench.orchestrator.sweep_record import read_sweep

#: No files, no extensions, no settings, no variables of this program: a query sees the registered table alone.
_CLOSED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "2GB",
    # DuckDB's own threads let go of Python objects even while the interpreter ends, and abort it.
    "threads": "1",
    "lock_configuration": "true",
}
#: What returns rows and changes nothing; PIVOT counts as several.
_QUERIES = ("SELECT", "EXPLAIN", "MULTI")
#: Far beyond any leaderboard's.
_QUERY_S, _BATCH, _MOST_ROWS, _MOST_BYTES = 20.0, 10_000, 1_000_000, 500_000_000


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
    """The result of one query over the table ``leaderboard``; it can neither read nor write files, nor load anything.

    Raises:
        ConfigError: the query is wrong, is no single query, or gives or takes too much; DuckDB's message says where.
    """
    import duckdb

    connection = duckdb.connect(config=_CLOSED)
    connection.register("leaderboard", rows)
    timer = threading.Timer(_QUERY_S, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        statements = connection.extract_statements(query)
        if len(statements) != 1 or str(statements[0].type).rpartition(".")[2] not in _QUERIES:
            found = ", ".join(str(one.type).rpartition(".")[2] for one in statements) or "nothing"
            raise ConfigError(f"Found {found}; expected one query, such as a SELECT over the table 'leaderboard'.")
        table = _bounded(connection.sql(statements[0]).to_arrow_reader(_BATCH))
    except duckdb.InterruptException as error:
        raise ConfigError(f"The query was ended after {_QUERY_S:g} s. Ask for less.") from error
    # Some errors come from Arrow, through which the rows are fetched; text that is no Unicode ends in a ValueError.
    except (duckdb.Error, pa.ArrowException, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The query cannot be run: {' '.join(str(error).split())[:500]}. The table is 'leaderboard', with the "
            f"columns {', '.join(rows.column_names)}."
        ) from error
    finally:
        timer.cancel()
        connection.close()
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise ConfigError(f"The query gives several columns the name {', '.join(twice)}; tell them apart with AS.")
    return table


def _bounded(batches: pa.RecordBatchReader) -> pa.Table:
    kept: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        kept.append(batch)
        count, size = count + batch.num_rows, size + batch.nbytes
        if count > _MOST_ROWS or size > _MOST_BYTES:
            raise ConfigError(
                f"The query gives more than {_MOST_ROWS:,} rows or {_MOST_BYTES // 10**6:,} MB. Add a limit to it."
            )
    return pa.Table.from_batches(kept, batches.schema)


def plain_rows(rows: pa.Table) -> list[dict[str, Any]]:
    """The rows as Python's own values.

    Raises:
        ConfigError: a value that Python has no place for, such as a date before the year 1.
    """
    try:
        found: list[dict[str, Any]] = rows.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise ConfigError(
            f"A value cannot be shown ({error}). Cast it to text in the query: CAST(x AS VARCHAR)."
        ) from error
    return found


def select(query: str, cells: list[dict[str, Any]], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one of the program's own queries over the table ``cells``."""
    with _own_connection().cursor() as connection:
        connection.register("cells", pa.Table.from_pylist(cells))
        found: list[dict[str, Any]] = connection.sql(query, params=dict(values)).to_arrow_table().to_pylist()
        return found


@cache
def _own_connection() -> Any:
    """One for all own queries: opening it takes longer than any of them."""
    import duckdb

    return duckdb.connect(config=_CLOSED)


def rendered(rows: pa.Table, form: str, output: str | None) -> None:
    """Write rows as csv, json, markdown or parquet to ``output`` or standard output."""
    if form == "parquet":
        import pyarrow.parquet as pq

        if output is None:
            raise ConfigError("--format parquet needs --output FILE: it is binary.")
        packed = io.BytesIO()  # first here: what cannot be packed leaves the file as it was
        try:
            pq.write_table(rows, packed)
        except pa.ArrowException as error:
            raise ConfigError(
                f"Parquet has no place for a type in these rows ({error}). Cast it to text in the query, or choose "
                "another --format."
            ) from error
        with _written_to(output):
            Path(output).write_bytes(packed.getvalue())
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
        Path(path).write_text(text, encoding="utf-8", errors="replace")


@contextmanager
def _written_to(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise ConfigError(f"Cannot write {path} ({error}). Give a file in a folder that exists.") from error


def _csv(rows: pa.Table) -> str:
    import csv

    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(rows.column_names)
    writer.writerows([_flat(value) for value in row.values()] for row in plain_rows(rows))
    return target.getvalue()


def _json(rows: pa.Table) -> str:
    import json

    return json.dumps(plain_rows(rows), indent=1, default=str) + "\n"


def _markdown(rows: pa.Table) -> str:
    lines = ["| " + " | ".join(rows.column_names) + " |", "|---" * rows.num_columns + "|"]
    lines += ["| " + " | ".join(str(_flat(value)) for value in row.values()) + " |" for row in plain_rows(rows)]
    return "\n".join(lines) + "\n"


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return ";".join("=".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
    return "" if value is None else value
