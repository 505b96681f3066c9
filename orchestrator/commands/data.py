"""data list, info, verify, show; what makes stores is in `prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from cryobench.orchestrator.commands.options import ConfigDir, DataDir, Json
from cryobench.orchestrator.commands.output import bar, console, print_json
from cryobench.orchestrator.commands.prepare import Name, Threads, register

app = typer.Typer(help="Tile stores.", no_args_is_help=True)
register(app)


@app.command("list")
def list_(data_dir: DataDir = None, config_dir: ConfigDir = None, json: Json = False) -> None:
    """List the configured data sets and which are prepared."""
    from cryobench.conf.compose import load_datasets
    from cryobench.conf.errors import CryobenchError, StorageError
    from cryobench.datasets.raw.reader import is_built
    from cryobench.datasets.store.store_info import read_info
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    rows, away = [], False
    for spec in load_datasets(where.config_dir):
        row: dict[str, Any] = {"name": spec.name, "title": spec.title, "source": spec.source, "state": "not_built"}
        if is_built(spec) and away:
            row["state"] = StorageError.kind
        elif is_built(spec):
            try:
                info = read_info(where.store(spec.name))
                row |= {"state": "prepared", "digest": info.digest, "origin": info.origin}
                row["tiles"] = {split: found.tiles for split, found in info.splits.items()}
            except CryobenchError as error:
                row["state"] = error.kind
                away = isinstance(error, StorageError)  # waited for once, not once for each
        rows.append(row)
    if json:
        print_json({"datasets": rows})
        return
    table = Table()
    for name in ("name", "title", "state", "tiles", "origin", "published at"):
        table.add_column(name)
    for row in rows:
        tiles = " / ".join(str(count) for count in row.get("tiles", {}).values())
        table.add_row(row["name"], row["title"], row["state"], tiles, row.get("origin", ""), row["source"])
    console.print(table)


@app.command()
def info(name: Name, data_dir: DataDir = None, config_dir: ConfigDir = None, json: Json = False) -> None:
    """Show what a tile store holds."""
    from cryobench.conf.compose import load_dataset
    from cryobench.datasets.store.store_info import read_info
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    load_dataset(name, where.config_dir)
    found = read_info(where.store(name))
    if json:
        print_json(found.model_dump(mode="json"))
        return
    title = Text.assemble((found.dataset.title, "bold"), f" · {where.store(name)}")
    console.print(title, highlight=False, soft_wrap=True)
    gsd = f"{found.dataset.gsd:g} m" if found.dataset.gsd else "unknown ground sampling distance"
    edition = f", edition {found.edition}" if found.edition else ""
    console.print(f"{found.dataset.sensor}, {gsd}; origin: {found.origin}{edition}", highlight=False)
    console.print(f"digest {found.digest}, format {found.format}, {found.written_by}", highlight=False)
    splits = Table("split", "tiles", "size", *found.classes, "unlabelled", title="Pixels (%)", title_justify="left")
    for split, part in found.splits.items():
        total = max(1, sum(part.class_pixels))
        shares = [f"{100 * count / total:.2f}" for count in part.class_pixels]
        splits.add_row(split, str(part.tiles), f"{part.width} x {part.height}", *shares)
    console.print(splits)
    bands = Table(
        "band", "group", "dtype", "mean", "std", "min", "p1", "median", "p99", "max", "no data %", "published"
    )
    bands.title, bands.title_justify = "Training split", "left"
    for group, channels in found.groups.items():
        stats = channels.statistics
        ranks = stats.percentiles
        for i, band in enumerate(channels.bands):
            columns = (stats.mean, stats.std, stats.min, ranks[1], ranks[50], ranks[99], stats.max)
            values = [f"{column[i]:.5g}" for column in columns] + [f"{100 * stats.missing[i]:.2f}"]
            if channels.published:
                mean, std = channels.published.mean[i], channels.published.std[i]
                values.append("" if mean is None else f"{mean:g} ± {std:g}")
            bands.add_row(band, group, channels.dtype.lstrip("<|"), *values)
    console.print(bands)


@app.command()
def show(
    name: Name,
    split: Annotated[Literal["train", "val", "test"], typer.Option("--split")] = "train",
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=100, help="Tiles on the sheet.")] = 12,
    out: Annotated[Path | None, typer.Option("--out", help="The PNG.", show_default="NAME-SPLIT.png")] = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Write a contact sheet: tiles in false colour with the outlines of their labels."""
    from cryobench.conf.compose import load_dataset
    from cryobench.datasets.show import contact_sheet
    from cryobench.datasets.store.tile_store import TileStore
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    load_dataset(name, where.config_dir)
    path = (out or Path(f"{name}-{split}.png")).resolve()
    shown = contact_sheet(TileStore(where.store(name)), split, count, path)
    console.print(f"{path}: {len(shown)} tiles of {split}", highlight=False, soft_wrap=True)


@app.command()
def verify(name: Name, data_dir: DataDir = None, config_dir: ConfigDir = None, threads: Threads = 2) -> None:
    """Read every chunk again and compare it with its digest."""
    from cryobench.conf.compose import load_dataset
    from cryobench.conf.errors import CorruptDataError
    from cryobench.datasets.store.tile_store import TileStore
    from cryobench.datasets.store.verify import verify as verify_store
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    load_dataset(name, where.config_dir)
    store = TileStore(where.store(name))
    with bar(f"Verifying {name}") as progress:
        problems = verify_store(store, threads=threads, progress=progress)
    for problem in problems:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    if problems:
        raise CorruptDataError(f"{store.path}: {len(problems)} problems found, listed above.")
    console.print(f"{store.path}: whole, digest {store.info.digest}", highlight=False, soft_wrap=True)
