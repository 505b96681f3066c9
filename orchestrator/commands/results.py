"""leaderboard, sync."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cryobench.orchestrator.commands.options import Json, Storage, TrackingUri
from cryobench.orchestrator.commands.output import bar, console, print_json
from cryobench.orchestrator.formatting import percent

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


def register(app: typer.Typer) -> None:
    """Add these commands to the top level."""
    app.command()(leaderboard)
    app.command()(sync)


def leaderboard(
    storage: Storage = None,
    sweep: Annotated[str | None, typer.Option("--sweep", help="Only the trials of one sweep.")] = None,
    regime: Annotated[str | None, typer.Option("--regime", help="Only one regime.")] = None,
    sql: Annotated[str | None, typer.Option("--sql", help="A query over the table 'leaderboard' (DuckDB).")] = None,
    format: Annotated[
        Format, typer.Option("--format", help="table and markdown: the paper's table; others: all rows.")
    ] = Format.table,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Write to a file.")] = None,
    json: Json = False,
) -> None:
    """Print the paper's table, encoders x data sets, or query every trial's row."""
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.results.leaderboard import read_leaderboard
    from cryobench.orchestrator.results.query import keep, rendered, run_sql
    from cryobench.orchestrator.results.ranking import result_tables

    where = places(storage)
    rows = keep(read_leaderboard(where.storage), where.storage, sweep, regime)
    chosen = Format.json if json else format
    if sql is not None:
        rows = run_sql(rows, sql)
    if chosen in (Format.table, Format.markdown) and sql is None:
        tables = result_tables(rows.to_pylist())
        if chosen is Format.table and output is None:
            for table in tables:
                _print_result_table(table)
            _print_notes(rows)
            return
        text = "\n".join(_markdown(table) for table in tables)
    elif chosen is Format.table and output is None:
        _print_rows(rows)
        return
    elif chosen is Format.json and sql is None:
        value = {"tables": [t.as_json() for t in result_tables(rows.to_pylist())], "trials": rows.to_pylist()}
        if output is None:
            print_json(value)
            return
        import json as plain

        text = plain.dumps(value, indent=1) + "\n"
    else:
        rendered(rows, str(chosen), output)
        return
    if output is None:
        typer.echo(text, nl=False)
    else:
        from pathlib import Path

        Path(output).write_text(text)


def sync(storage: Storage = None, tracking_uri: TrackingUri = None) -> None:
    """Rebuild MLflow and the leaderboard from the trial folders; doing it twice changes nothing."""
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.results.leaderboard import table_path
    from cryobench.orchestrator.results.projection import sync as synchronise
    from cryobench.orchestrator.results.tracking import default_uri

    where = places(storage)
    uri = None if tracking_uri == "none" else tracking_uri or default_uri(where.storage)
    with bar("Trials") as progress:
        done = synchronise(where.storage, uri, progress)
    if where.storage_url:
        from cryobench.workers.record.mirror import Mirror

        Mirror(where.storage_url).push_projections(where.storage)
    console.print(
        f"{done.trials} trials of {done.sweeps} sweeps, {done.rows} rows in {table_path(where.storage)}", soft_wrap=True
    )
    if done.tracking_error:
        from cryobench.conf.errors import TrackingError

        raise TrackingError(f"The leaderboard is rebuilt; MLflow is not. {done.tracking_error}")


def _print_result_table(table: ResultTable) -> None:
    rates = f", best of {table.rates} learning rates by validation" if table.rates > 1 else ""
    shown = Table(title=f"Test mIoU (%) · {table.regime}{rates} · protocol {table.protocol}", title_justify="left")
    shown.add_column("encoder", no_wrap=True)
    for name in (*table.datasets, "avg_miou", "avg_rank"):
        shown.add_column(name, justify="right")
    for row in table.rows:
        mark = " (random weights)" if row.weights == "random" else ""
        cells = [percent(row.miou.get(name)) for name in table.datasets]
        shown.add_row(row.title + mark, *cells, percent(row.avg_miou), percent(row.avg_rank))
    console.print(shown)


def _print_notes(rows: pa.Table) -> None:
    plain = rows.to_pylist()
    if any(str(row["data_origin"]).startswith("generated") for row in plain):
        console.print("Some of these data sets are generated: these are not benchmark results.")
    if any(row["weights"] == "random" for row in plain):
        console.print("Encoders marked so ran with random weights: these are not benchmark results.")
    odd = [row for row in plain if row["status"] != "completed"]
    for row in odd[:20]:
        what = row["failure_kind"] or row["status"]
        console.print(f"{what}: {row['encoder']} {row['dataset']} {row['regime']} lr {row['lr']:g}", highlight=False)
    if not plain:
        console.print("No finished trials yet.")


def _markdown(table: ResultTable) -> str:
    head = ["encoder", *table.datasets, "avg_miou", "avg_rank"]
    lines = [
        f"### {table.regime} (protocol {table.protocol})",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for row in table.rows:
        mark = " (random weights)" if row.weights == "random" else ""
        cells = [percent(row.miou.get(name)) for name in table.datasets]
        lines.append("| " + " | ".join([row.title + mark, *cells, percent(row.avg_miou), percent(row.avg_rank)]) + " |")
    if table.generated:
        lines += ["", "Generated data: not a benchmark result."]
    return "\n".join(lines) + "\n"


def _print_rows(rows: pa.Table) -> None:
    shown = Table()
    for name in rows.column_names:
        shown.add_column(name)
    for row in rows.to_pylist():
        values: list[Any] = list(row.values())
        shown.add_row(*[f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in values])
    console.print(shown)
