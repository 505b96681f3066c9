"""data prepare, info, verify, synth, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cryobench.orchestrator.commands.options import ConfigDir, DataDir, Json
from cryobench.orchestrator.commands.shown import bar, console, print_json

app = typer.Typer(help="Tile stores.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A data set; cryobench data list shows them.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads that read and compress.")]


@app.command("list")
def list_(data_dir: DataDir = None, config_dir: ConfigDir = None, json: Json = False) -> None:
    """List the configured data sets and which are prepared."""
    from cryobench.conf.compose import load_datasets
    from cryobench.conf.errors import CryobenchError
    from cryobench.datasets.store import read_info
    from cryobench.datasets.tiles import is_built
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    rows = []
    for spec in load_datasets(where.config_dir):
        row: dict[str, Any] = {"name": spec.name, "title": spec.title, "source": spec.source, "state": "not_built"}
        if is_built(spec):
            try:
                info = read_info(where.store(spec.name))
                row |= {"state": "prepared", "digest": info.digest, "origin": info.origin}
                row["tiles"] = {split: found.tiles for split, found in info.splits.items()}
            except CryobenchError as error:
                row["state"] = error.kind
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
def prepare(
    name: Name,
    source: Annotated[Path, typer.Option("--source", help="Folder with the raw files.")],
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
    threads: Threads = 2,
    force: Annotated[bool, typer.Option("--force", help="Replace a store of other files.")] = False,
) -> None:
    """Convert raw files into a tile store; continues where it was interrupted."""
    from cryobench.conf.compose import load_dataset
    from cryobench.datasets.convert import convert
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    spec = load_dataset(name, where.config_dir)
    with bar(f"Converting {name}") as progress:
        made = convert(spec, source, where.store(name), threads=threads, force=force, progress=progress)
    tiles = ", ".join(f"{found.tiles} {split}" for split, found in made.splits.items())
    console.print(f"{where.store(name)}: {tiles} tiles, digest {made.digest[:16]}", highlight=False, soft_wrap=True)


@app.command()
def synth(
    name: Name,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
    tiles: Annotated[tuple[int, int, int], typer.Option("--tiles", help="Scenes in train, val and test.")] = (24, 8, 8),
    size: Annotated[int, typer.Option("--size", help="Side of a scene in pixels.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 234,
) -> None:
    """Generate a data set in its published layout and prepare it; marked as generated in every result."""
    from cryobench.conf.compose import load_dataset
    from cryobench.conf.errors import DataError
    from cryobench.datasets.convert import convert
    from cryobench.datasets.store import read_info
    from cryobench.datasets.synth.generate import generate
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    spec = load_dataset(name, where.config_dir)
    store = where.store(name)
    if store.exists() and not read_info(store).origin.startswith("generated"):
        raise DataError(f"{store} holds real data; generated scenes would replace them. Choose another --data-dir.")
    with bar(f"Generating {name}") as progress:
        generate(name, where.raw(name), tiles=tiles, size=size, seed=seed, progress=progress)
    with bar(f"Converting {name}") as progress:
        made = convert(spec, where.raw(name), store, force=True, progress=progress)
    console.print(f"{store}: {sum(tiles)} generated tiles, digest {made.digest[:16]}", highlight=False, soft_wrap=True)


@app.command()
def info(name: Name, data_dir: DataDir = None, config_dir: ConfigDir = None, json: Json = False) -> None:
    """Show what a tile store holds."""
    from cryobench.conf.compose import load_dataset
    from cryobench.datasets.store import read_info
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    load_dataset(name, where.config_dir)
    found = read_info(where.store(name))
    if json:
        print_json(found.model_dump(mode="json"))
        return
    console.print(f"[bold]{found.dataset.title}[/] · {where.store(name)}", highlight=False, soft_wrap=True)
    gsd = f"{found.dataset.gsd:g} m" if found.dataset.gsd else "unknown ground sampling distance"
    console.print(f"{found.dataset.sensor}, {gsd}; origin: {found.origin}", highlight=False)
    console.print(f"digest {found.digest}, format {found.format}, {found.written_by}", highlight=False)
    splits = Table("split", "tiles", "size", *found.classes, "unlabelled", title="Pixels (%)", title_justify="left")
    for split, part in found.splits.items():
        total = max(1, sum(part.class_pixels))
        shares = [f"{100 * count / total:.2f}" for count in part.class_pixels]
        splits.add_row(split, str(part.tiles), f"{part.width} x {part.height}", *shares)
    console.print(splits)
    bands = Table("band", "group", "dtype", "mean", "std", "min", "max", "published mean", "published std")
    bands.title, bands.title_justify = "Training split", "left"
    for group, channels in found.groups.items():
        for i, band in enumerate(channels.bands):
            stats = channels.statistics
            values = [f"{v[i]:.6g}" for v in (stats.mean, stats.std, stats.min, stats.max)]
            if channels.published:
                values += [f"{channels.published.mean[i]:g}", f"{channels.published.std[i]:g}"]
            bands.add_row(band, group, channels.dtype.lstrip("<|"), *values)
    console.print(bands)


@app.command()
def verify(name: Name, data_dir: DataDir = None, config_dir: ConfigDir = None, threads: Threads = 2) -> None:
    """Read every chunk again and compare it with its digest."""
    from cryobench.conf.compose import load_dataset
    from cryobench.conf.errors import CorruptDataError
    from cryobench.datasets.store import TileStore
    from cryobench.datasets.verify import verify as verify_store
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
