"""encoders list, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cryobench.orchestrator.commands.options import CacheDir, ConfigDir, Json, WeightsDir
from cryobench.orchestrator.commands.shown import console, print_json

app = typer.Typer(help="Encoders.", no_args_is_help=True)


@app.command("list")
def list_(
    config_dir: ConfigDir = None, weights_dir: WeightsDir = None, cache_dir: CacheDir = None, json: Json = False
) -> None:
    """List the configured encoders, their variants, and whether their weights are here."""
    from cryobench.conf.compose import load_encoders
    from cryobench.encoders.registry import is_built
    from cryobench.orchestrator.places import places

    where = places(weights_dir=weights_dir, cache_dir=cache_dir, config_dir=config_dir)
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
            rows.append(
                {
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
            )
    if json:
        print_json({"encoders": rows})
        return
    table = Table("encoder", "variant", "input", "bands", "weights", "in this release")
    for row in rows:
        bands = "; ".join(f"{m}: {'any' if isinstance(b, str) else len(b)}" for m, b in row["bands"].items())
        table.add_row(
            row["encoder"],
            row["variant"],
            str(row["input_size"]),
            bands,
            row["weights"],
            "yes" if row["built"] else "no",
        )
    console.print(table)


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
