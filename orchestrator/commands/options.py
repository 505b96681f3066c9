"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="name=value in Hydra's grammar, e.g. sweep=paper_frozen encoders=[unet,vit] lr=[1e-4,1e-3]",
        show_default=False,
        metavar="[OVERRIDES]...",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Results: trials, leaderboard, MLflow.",
        show_default="./cryobench-storage or $CRYOBENCH_STORAGE",
    ),
]
DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Tile stores.", show_default="./cryobench-data or $CRYOBENCH_DATA")
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache-dir",
        help="Decoded tiles of this node.",
        show_default="$CRYOBENCH_CACHE, or below the system's temporary folder",
    ),
]
WeightsDir = Annotated[
    str | None,
    typer.Option("--weights-dir", help="Published checkpoints.", show_default="DATA_DIR/weights or $CRYOBENCH_WEIGHTS"),
]
ConfigDir = Annotated[
    str | None,
    typer.Option(
        "--config-dir", help="Your own YAML groups (encoder/, dataset/, sweep/, …).", show_default="$CRYOBENCH_CONFIG"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", help="MLflow tracking URI; 'none' for no tracking.", show_default="SQLite below STORAGE"
    ),
]
