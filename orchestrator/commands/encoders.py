"""encoders list, check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cryobench.orchestrator.commands.options import CacheDir, ConfigDir, Json, WeightsDir
from cryobench.orchestrator.commands.output import console, print_json

if TYPE_CHECKING:
    from cryobench.conf.dataset_spec import DatasetSpec
    from cryobench.conf.schema import EncoderSpec
    from cryobench.conf.terms import Variant

app = typer.Typer(help="Encoders.", no_args_is_help=True)


@app.command("list")
def list_(
    config_dir: ConfigDir = None,
    weights_dir: WeightsDir = None,
    cache_dir: CacheDir = None,
    cost: Annotated[bool, typer.Option("--cost", help="Parameters and multiply-adds for one crop.")] = False,
    dataset: Annotated[str, typer.Option("--dataset", help="Whose bands and tiles --cost is for.")] = "gld",
    json: Json = False,
) -> None:
    """List the configured encoders, their variants, and whether their weights are here."""
    from cryobench.conf.compose import load_dataset, load_encoders
    from cryobench.encoders.registry import is_built
    from cryobench.orchestrator.places import places

    where = places(weights_dir=weights_dir, cache_dir=cache_dir, config_dir=config_dir)
    data = load_dataset(dataset, where.config_dir)
    rows: list[dict[str, Any]] = []
    for encoder in load_encoders(where.config_dir):
        for name, variant in encoder.variants.items():
            file = variant.weights.file if variant.weights else None
            if encoder.baseline:
                weights = "trained from scratch"
            elif file is None:
                weights = "none published"
            else:
                weights = "present" if (where.weights_dir / file).is_file() else "missing"
            row: dict[str, Any] = {
                "encoder": encoder.name,
                "title": encoder.title,
                "variant": name,
                "family": encoder.family,
                "built": is_built(encoder.family),
                "input_size": encoder.input_size,
                "bands": {m: b if isinstance(b, str) else list(b) for m, b in variant.bands.items()},
                "weights": weights,
                "file": file,
            }
            rows.append(row | (_cost(encoder, name, data) if cost else {}))
    if json:
        print_json({"encoders": rows})
        return
    table = Table("encoder", "variant", "input", "bands", "weights", "in this release")
    if cost:
        table = Table("encoder", "variant", "input", "parameters (M)", "decoder (M)", "encoder GMAC", "GMAC")
        table.title = f"One crop of {dataset}; multiply-adds in 10⁹, the paper's GFLOPs"
    for row in rows:
        if cost:
            found = [f"{row[key]:.1f}" if key in row else "–" for key in _COSTS]
            table.add_row(row["encoder"], row["variant"], str(row["input_size"]), *found)
            continue
        bands = "; ".join(f"{m}: {'any' if isinstance(b, str) else len(b)}" for m, b in row["bands"].items())
        built = "yes" if row["built"] else "no"
        table.add_row(row["encoder"], row["variant"], str(row["input_size"]), bands, row["weights"], built)
    console.print(table)


_COSTS = ("encoder_mparameters", "decoder_mparameters", "encoder_gmacs", "gmacs")


def _cost(encoder: EncoderSpec, variant: Variant, data: DatasetSpec) -> dict[str, float]:
    """Cost of one variant on a data set; nothing where the data set has nothing to feed it."""
    from cryobench.conf.errors import ConfigError
    from cryobench.conf.feeding import feed
    from cryobench.conf.schema import ProtocolSpec
    from cryobench.encoders.registry import is_built
    from cryobench.workers.model.cost import cost_of

    if not is_built(encoder.family):
        return {}
    try:
        bands, _ = feed(encoder, variant, data, "reference")
    except ConfigError:
        return {}
    size = None if encoder.input_size == "tile" else encoder.input_size
    found = cost_of(
        encoder.family,
        {**encoder.settings, **encoder.variants[variant].settings},
        bands,
        size,
        size or data.tile or 512,
        encoder.decoder,
        ProtocolSpec().decoder_channels,
        len(data.classes),
    )
    return {
        "encoder_mparameters": found.encoder_parameters / 1e6,
        "decoder_mparameters": found.decoder_parameters / 1e6,
        "encoder_gmacs": found.encoder_gmacs,
        "gmacs": found.gmacs,
    }


@app.command()
def explain(
    encoder: Annotated[str, typer.Argument(help="An encoder.")],
    dataset: Annotated[str, typer.Argument(help="A data set.")],
    view: Annotated[str, typer.Option("--view", help="reference or actual")] = "reference",
    modality: Annotated[str, typer.Option("--modality", help="auto, optical, sar or joint")] = "auto",
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Say in words what an encoder is fed of a data set: which channel where, what is zero, what is dropped."""
    from cryobench.conf.compose import load_dataset, load_encoder
    from cryobench.conf.errors import UnknownNameError
    from cryobench.conf.feeding import choose_variant
    from cryobench.conf.feeding import explain as in_words
    from cryobench.orchestrator.places import places

    for what, value, known in (
        ("view", view, ("reference", "actual")),
        ("modality", modality, ("auto", "optical", "sar", "joint")),
    ):
        if value not in known:
            raise UnknownNameError(what, value, known)
    folder = places(config_dir=config_dir).config_dir
    found, data = load_encoder(encoder, folder), load_dataset(dataset, folder)
    variant = choose_variant(found, data, modality, view)  # type: ignore[arg-type]
    lines = in_words(found, variant, data, view)  # type: ignore[arg-type]
    if json:
        print_json({"encoder": encoder, "dataset": dataset, "variant": variant, "lines": lines})
        return
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def check(
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Folder of golden files.", show_default="the package's own")
    ] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Compare every encoder with the reference's golden outputs, through checkpoint files and the real loader."""
    from cryobench.conf.compose import load_encoders
    from cryobench.encoders.golden import GOLDEN_DIR, Check, check_encoder, encoder_goldens, match_golden
    from cryobench.orchestrator.places import places

    known = load_encoders(places(config_dir=config_dir).config_dir)
    checks: list[Check] = []
    for reference in encoder_goldens(golden or GOLDEN_DIR):
        found = match_golden(reference, known)
        if found is None:
            checks.append(Check(reference["encoder"], None, "no encoder of this name"))
        else:
            checks.append(check_encoder(*found, reference))
        if not json:
            last = checks[-1]
            off = "–" if last.deviation is None else f"{last.deviation:.1e}"
            console.print(f"{last.name:18} {off:>8}  {last.verdict}", highlight=False)
    if json:
        print_json({"checks": [{"encoder": c.name, "deviation": c.deviation, "verdict": c.verdict} for c in checks]})
    if not all(c.passed for c in checks):
        raise typer.Exit(1)
