"""data fetch, prepare, synth: how tile stores come about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.orchestrator.commands.options import CacheDir, ConfigDir, DataDir
from cryobench.orchestrator.commands.output import bar, byte_bars, console

if TYPE_CHECKING:
    from cryobench.conf.dataset_spec import DatasetSpec
    from cryobench.datasets.store.store_info import StoreInfo
    from cryobench.orchestrator.places import Places

Name = Annotated[str, typer.Argument(help="A data set; cryobench data list shows them.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads that read and compress.")]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command()(fetch)
    app.command()(prepare)
    app.command()(synth)


def fetch(name: Name, data_dir: DataDir = None, cache_dir: CacheDir = None, config_dir: ConfigDir = None) -> None:
    """Download a data set from where it is published; resumes, and verifies what came."""
    from cryobench.conf.compose import load_dataset
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.supply.downloads import fetch_dataset

    where = places(data_dir=data_dir, cache_dir=cache_dir, config_dir=config_dir)
    spec = load_dataset(name, where.config_dir)
    folder = where.own_data(name).downloads
    with byte_bars() as begin:
        paths = fetch_dataset(spec, folder, where.cache_dir, lambda file: begin(f"Downloading {file}"))
    console.print(
        f"{folder}: {', '.join(path.name for path in paths)}. Now run: cryobench data prepare {name}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def prepare(
    name: Name,
    source: Annotated[
        Path | None,
        typer.Option("--source", help="Folder with the raw files, or archive.", show_default="what data fetch brought"),
    ] = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
    threads: Threads = 2,
    force: Annotated[bool, typer.Option("--force", help="Replace a store of other files.")] = False,
) -> None:
    """Convert raw files into a tile store; continues where it was interrupted."""
    from cryobench.conf.compose import load_dataset
    from cryobench.conf.errors import MissingDataError
    from cryobench.datasets.raw.archives import raw_folder
    from cryobench.datasets.store.convert import convert
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    spec = load_dataset(name, where.config_dir)
    mine = where.own_data(name)
    if source is None and not mine.downloads.is_dir():
        raise MissingDataError(
            f"Nothing to prepare '{name}' from: {mine.downloads} does not exist. Run: cryobench data fetch {name}, or "
            f"give --source the unpacked folder or its archive (published: {spec.source or '?'})."
        )
    with bar(f"Unpacking {name}", size=True) as progress:
        raw = raw_folder(spec, source or mine.downloads, mine.unpacked, progress)
    with bar(f"Converting {name}") as progress:
        made = convert(spec, raw, mine.store, threads=threads, force=force, progress=progress)
    _tell_counts(spec, made)
    console.print(f"{mine.store}: digest {made.digest[:16]}", highlight=False, soft_wrap=True)
    if raw.is_relative_to(mine.unpacked):
        console.print(f"{mine.unpacked} is not needed any more and may be removed.", highlight=False, soft_wrap=True)


def synth(
    name: Annotated[str, typer.Argument(help="A data set of the benchmark, or all.")],
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
    tiles: Annotated[tuple[int, int, int], typer.Option("--tiles", help="Tiles in train, val and test.")] = (24, 8, 8),
    size: Annotated[int, typer.Option("--size", help="Side of a tile in pixels.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1)] = 234,
) -> None:
    """Generate a data set in its published layout and prepare it; marked as generated in every result."""
    from cryobench.datasets.synth.generate import RECIPES
    from cryobench.orchestrator.places import places

    where = places(data_dir=data_dir, config_dir=config_dir)
    for one in sorted(RECIPES) if name == "all" else [name]:
        _synthesise(one, where, tiles, size, seed)


def _synthesise(name: str, where: Places, tiles: tuple[int, int, int], size: int, seed: int) -> None:
    from cryobench.conf.compose import load_dataset
    from cryobench.conf.errors import DataError
    from cryobench.datasets.store.convert import convert
    from cryobench.datasets.store.store_info import read_info
    from cryobench.datasets.synth.generate import fitted, generate

    spec, mine = load_dataset(name, where.config_dir), where.own_data(name)
    if mine.store.exists() and not read_info(mine.store).origin.startswith("generated"):
        raise DataError(
            f"{mine.store} holds real data; generated scenes would replace them. Choose another --data-dir."
        )
    with bar(f"Generating {name}") as progress:
        generate(name, mine.generated, tiles=tiles, size=size, seed=seed, progress=progress)
    with bar(f"Converting {name}") as progress:
        made = convert(fitted(spec, size), mine.generated, mine.store, force=True, progress=progress)
    count = sum(split.tiles for split in made.splits.values())
    console.print(f"{mine.store}: {count} generated tiles, digest {made.digest[:16]}", highlight=False, soft_wrap=True)


def _tell_counts(spec: DatasetSpec, made: StoreInfo) -> None:
    """Tiles a split, against the published numbers where they are known."""
    published = spec.editions[made.edition].tiles if made.edition else None
    for split, found in made.splits.items():
        text = f"{split}: {found.tiles:,} tiles of {found.width} x {found.height}"
        if published and split in published:
            same = found.tiles == published[split]
            text += f", {'as' if same else f'but {published[split]:,} are'} published"
        console.print(text, highlight=False)
