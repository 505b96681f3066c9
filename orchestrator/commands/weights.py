"""weights list, fetch, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cryobench.orchestrator.commands.options import CacheDir, ConfigDir, Json, WeightsDir
from cryobench.orchestrator.commands.output import bar, console, print_json

if TYPE_CHECKING:
    from cryobench.orchestrator.supply.weights_folder import CatalogueEntry, WeightsFolder

app = typer.Typer(help="Published checkpoints.", no_args_is_help=True)

Names = Annotated[list[str] | None, typer.Argument(help="Encoders; all if none is named.", metavar="[ENCODER]...")]


@app.command("list")
def list_(
    weights_dir: WeightsDir = None, cache_dir: CacheDir = None, config_dir: ConfigDir = None, json: Json = False
) -> None:
    """List the published files: where they are published, their licence, and whether they are here."""
    entries, folder = _open(None, weights_dir, cache_dir, config_dir)
    rows: list[dict[str, Any]] = [
        {
            "file": entry.spec.file,
            "encoders": list(entry.encoders),
            "published": entry.spec.published,
            "licence": entry.spec.licence,
            "sha256": entry.spec.sha256,
            "layout": entry.spec.layout.model_dump(mode="json", exclude_defaults=True),
            "present": (folder.folder / entry.spec.file).is_file(),
        }
        for entry in entries
    ]
    if json:
        print_json({"weights": rows})
        return
    table = Table("file", "encoders", "published", "licence", "here")
    for row in rows:
        here = "yes" if row["present"] else "no"
        table.add_row(row["file"], " ".join(row["encoders"]), row["published"], row["licence"], here)
    console.print(table)


@app.command()
def fetch(
    names: Names = None, weights_dir: WeightsDir = None, cache_dir: CacheDir = None, config_dir: ConfigDir = None
) -> None:
    """Download published files; continues a broken download, records their digests."""
    from cryobench.conf.errors import CryobenchError, FetchError

    entries, folder = _open(names, weights_dir, cache_dir, config_dir)
    failed = 0
    for entry in entries:
        try:
            with bar(entry.spec.file) as progress:
                path = folder.fetch(entry.spec, progress)
            console.print(f"{path}: here, licence {entry.spec.licence}", highlight=False, soft_wrap=True)
        except CryobenchError as error:
            failed += 1
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise FetchError(f"{failed} of {len(entries)} files are not here; see above.")


@app.command()
def verify(
    names: Names = None, weights_dir: WeightsDir = None, cache_dir: CacheDir = None, config_dir: ConfigDir = None
) -> None:
    """Compare the files that are here with their published or recorded digests."""
    from cryobench.conf.errors import BadCheckpointError, CryobenchError

    entries, folder = _open(names, weights_dir, cache_dir, config_dir)
    failed = 0
    for entry in entries:
        if not (folder.folder / entry.spec.file).is_file():
            console.print(f"{entry.spec.file}: not here", highlight=False)
            continue
        try:
            digest = folder.verified(entry.spec)
            console.print(f"{entry.spec.file}: sha256 {digest}", highlight=False, soft_wrap=True)
        except CryobenchError as error:
            failed += 1
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise BadCheckpointError(f"{failed} files are not what they should be; see above.")


def _open(
    names: list[str] | None, weights_dir: str | None, cache_dir: str | None, config_dir: str | None
) -> tuple[list[CatalogueEntry], WeightsFolder]:
    from cryobench.conf.compose import load_encoder, load_encoders
    from cryobench.orchestrator.places import places
    from cryobench.orchestrator.supply.weights_folder import WeightsFolder, catalogue

    where = places(weights_dir=weights_dir, cache_dir=cache_dir, config_dir=config_dir)
    known = [load_encoder(name, where.config_dir) for name in names] if names else load_encoders(where.config_dir)
    return catalogue(known), WeightsFolder(where.weights_dir, where.cache_dir)
