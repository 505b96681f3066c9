"""leaderboard: the paper's table, ours or the published one, and queries over every trial's row."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cryobench.orchestrator.commands.options import Json, Storage
from cryobench.orchestrator.commands.output import console, print_json

if TYPE_CHECKING:
    import pyarrow as pa

    from cryobench.orchestrator.results.ranking import ResultTable


class Format(StrEnum):
    """Output formats of the leaderboard."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    parquet = "parquet"


class Source(StrEnum):
    """Whose numbers."""

    storage = "storage"
    published = "published"


def leaderboard(
    storage: Storage = None,
    sweep: Annotated[str | None, typer.Option("--sweep", help="Only the trials of one sweep.")] = None,
    regime: Annotated[str | None, typer.Option("--regime", help="Only one regime.")] = None,
    edition: Annotated[
        str, typer.Option("--edition", help="Edition of the benchmark, whose data sets are averaged.")
    ] = "2026-03",
    datasets: Annotated[
        str | None,
        typer.Option("--datasets", help="Data sets to average outside of the editions.", show_default="all"),
    ] = None,
    source: Annotated[Source, typer.Option("--source", help="This storage's results, or the published ones.")] = (
        Source.storage
    ),
    against: Annotated[
        Source | None, typer.Option("--against", help="published: ours beside the published table.")
    ] = None,
    sql: Annotated[str | None, typer.Option("--sql", help="A query over the table 'leaderboard' (DuckDB).")] = None,
    format: Annotated[
        Format, typer.Option("--format", help="table and markdown: the paper's table; others: all rows.")
    ] = Format.table,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Write to a file.")] = None,
    json: Json = False,
) -> None:
    """Print the paper's table, encoders x data sets, or query every trial's row."""
    from cryobench.conf.benchmark_editions import edition_named
    from cryobench.conf.errors import ConfigError
    from cryobench.orchestrator.results.published import published_remarks, published_table
    from cryobench.orchestrator.results.query import rendered, run_sql

    edition_named(edition)
    form = Format.json if json else format
    if source is Source.published:
        if sweep is not None or against is not None or datasets is not None or regime not in (None, "frozen"):
            raise ConfigError(
                "--source published has the published table of frozen encoders alone; leave out --sweep, --datasets, "
                "--against and other regimes."
            )
        if sql is not None or form in (Format.csv, Format.parquet):
            raise ConfigError("--source published has one table: give it with --format table, markdown or json.")
        _give_tables([published_table(edition)], published_remarks(edition), form, output, rows=None)
        return
    if against is Source.storage:
        raise ConfigError("--against takes published: this storage's results are what is set beside it.")
    rows, named = _rows(storage, sweep, regime, datasets)
    if sql is not None:
        found = run_sql(rows, sql)
        if form is Format.table and output is None:
            _print_rows(found)
        else:
            rendered(found, str(form), output)
    elif form in (Format.csv, Format.parquet):
        rendered(rows, str(form), output)
    else:
        from cryobench.orchestrator.results.ranking import result_tables

        tables = result_tables(rows.to_pylist(), edition, named)
        if against is not None:
            _give_beside(tables, edition, form, output)
        else:
            _give_tables(tables, [], form, output, rows)


def _rows(
    storage: str | None, sweep: str | None, regime: str | None, datasets: str | None
) -> tuple[pa.Table, list[str] | None]:
    """The rows asked for, and the data sets to average outside of the editions."""
    from cryobench.conf.errors import UnknownNameError
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.results.leaderboard import read_leaderboard
    from cryobench.orchestrator.results.query import keep
    from cryobench.orchestrator.sweep_record import read_sweep

    where = places(storage)
    where.bring_table()
    if sweep is not None:
        where.bring_sweeps()
    rows = keep(read_leaderboard(where.storage), where.storage, sweep, regime)
    if datasets is not None:
        named = [name.strip() for name in datasets.split(",") if name.strip()]
        known = set(rows["dataset"].to_pylist())
        for name in named:
            if name not in known:
                raise UnknownNameError("data set in this leaderboard", name, known)
        return rows, named
    if sweep is None:
        return rows, None
    asked = [dataset.name for request in read_sweep(where.storage, sweep).requests for dataset in request.datasets]
    return rows, sorted(set(asked))


def _give_tables(
    tables: list[ResultTable], remarks: list[str], form: Format, output: str | None, rows: pa.Table | None
) -> None:
    from cryobench.orchestrator.results import table_text

    if form is Format.json:
        value: dict[str, Any] = {"tables": [table_text.as_json(table) for table in tables], "remarks": remarks}
        _give(value if rows is None else {**value, "trials": rows.to_pylist()}, output)
    elif form is Format.markdown or output is not None:
        text = "\n".join(table_text.markdown(table) for table in tables)
        _give(text + "".join(f"\n{remark}\n" for remark in remarks), output)
    else:
        for table in tables:
            _print_table(
                table_text.title(table),
                table_text.header(table),
                [table_text.line(table, row) for row in table.rows],
                [*table_text.notes(table), *remarks],
            )
        if rows is not None:
            _print_odd(rows)


def _give_beside(tables: list[ResultTable], edition: str, form: Format, output: str | None) -> None:
    from cryobench.conf.benchmark_editions import edition_named
    from cryobench.conf.errors import ConfigError
    from cryobench.orchestrator.results import table_text
    from cryobench.orchestrator.results.published import beside_published

    ours = [table for table in tables if table.edition == edition and table.regime == "frozen"]
    if not ours:
        raise ConfigError(
            f"Nothing here can stand beside the published table of edition {edition}: it needs trials of the regime "
            f"frozen on real data of {', '.join(edition_named(edition).datasets)}."
        )
    datasets = edition_named(edition).datasets
    named = [(f"{table_text.title(table)} · against published", beside_published(table, edition)) for table in ours]
    if form is Format.json:
        _give([{"title": what, "encoders": [one.as_json() for one in found]} for what, found in named], output)
    elif form is Format.markdown or output is not None:
        _give("\n".join(table_text.beside_markdown(what, datasets, found) for what, found in named), output)
    else:
        for what, found in named:
            lines = [row for one in found for row in table_text.beside_lines(one)]
            _print_table(what, table_text.beside_header(datasets), lines, ["rerun: measured here · copied: published"])


def _give(value: Any, output: str | None) -> None:
    """Text or plain data to a file or standard output."""
    import json

    if not isinstance(value, str):
        if output is None:
            print_json(value)
            return
        value = json.dumps(value, indent=1) + "\n"
    if output is None:
        typer.echo(value, nl=False)
    else:
        from cryobench.orchestrator.results.query import write_text

        write_text(output, value)


def _print_table(title: str, header: list[str], lines: list[list[str]], notes: list[str]) -> None:
    console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    shown = Table()
    for i, name in enumerate(header):
        shown.add_column(name, no_wrap=True, justify="left" if i == 0 else "right")
    for line in lines:
        shown.add_row(*line)
    console.print(shown)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _print_odd(rows: pa.Table) -> None:
    """Trials that did not complete, each in a line."""
    odd = [row for row in rows.to_pylist() if row["status"] != "completed" or row["test_miou"] is None]
    for row in odd[:20]:
        unreadable = row["status"] == "completed"
        what = "result cannot be read" if unreadable else row["failure_kind"] or row["status"]
        line = f"{what}: {row['encoder']} {row['dataset']} {row['regime']} lr {row['lr']:g} seed {row['seed']}"
        console.print(f"{line} ({row['trial_id']})", markup=False, highlight=False)
    if len(odd) > 20:
        console.print(f"… and {len(odd) - 20} more that did not complete.", highlight=False)
    if not rows.num_rows:
        console.print("No finished trials yet.")


def _print_rows(rows: pa.Table) -> None:
    from cryobench.orchestrator.results.query import plain_rows

    shown = Table()
    for name in rows.column_names:
        shown.add_column(name)
    for row in plain_rows(rows):
        values: list[Any] = list(row.values())
        shown.add_row(*[f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in values])
    console.print(shown)
