"""What a trial will take, from what trials of this storage took: seconds and memory.

Recorded are the leaderboard's finished trials, and of a few of each cell their results. What ran on another device, or
never ran here, is only estimated (`cryobench.orchestrator.sweep.throughput`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cryobench.conf.errors import CryobenchError
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.store.store_info import StoreInfo, read_info
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.results.leaderboard import read_leaderboard, table_path
from cryobench.workers.record.folder import RESULT

#: Of each cell, so many results are read.
_RESULTS_A_CELL = 3
_COLUMNS = ["trial_id", "encoder", "dataset", "regime", "status", "device", "training_tiles", "gmacs", "peak_memory_mb"]

Cell = tuple[str, str, str]


@dataclass(frozen=True)
class Recorded:
    """What trials of one encoder, data set and regime took on one device.

    ``seconds_a_tile``: wall time of the whole trial by training tiles, the median; ``tiles``: those of its training
    subset. ``memory_mb``: the largest peak.
    """

    device: str
    tiles: int
    seconds_a_tile: float
    memory_mb: float
    gmacs: float | None


class CostBook:
    """The recorded costs of a storage, by encoder, data set and regime; empty where nothing was recorded.

    Args:
        where: the storage, and the stores whose tiles are counted.
    """

    def __init__(self, where: Places) -> None:
        self._where = where
        self._recorded = _read(where.storage)
        self._stores: dict[str, StoreInfo | None] = {}
        self._relative: dict[tuple[object, ...], float] = {}
        paces = [entry.seconds_a_tile for entries in self._recorded.values() for entry in entries]
        self._usual_pace = median(paces) if paces else 1.0

    def recorded(self, spec: TrialSpec) -> list[Recorded]:
        """What trials of the same encoder, data set and regime took, one entry a device."""
        return self._recorded.get((spec.encoder.name, spec.dataset.name, spec.regime.name), [])

    def devices(self) -> list[str]:
        """The devices on which anything was recorded, the most used first."""
        found: dict[str, int] = defaultdict(int)
        for entries in self._recorded.values():
            for entry in entries:
                found[entry.device] += 1
        return sorted(found, key=lambda device: (-found[device], device))

    def store(self, spec: TrialSpec) -> StoreInfo | None:
        """The store of a trial's data set, or None while it is missing."""
        name = spec.dataset.name
        if name not in self._stores:
            try:
                self._stores[name] = read_info(self._where.store(name))
            except CryobenchError:
                self._stores[name] = None  # the plan says what is missing
        return self._stores[name]

    def training_tiles(self, spec: TrialSpec) -> int | None:
        """Tiles that a trial trains on in all its epochs; None while its data are missing."""
        entries = self.recorded(spec)
        if entries:
            subset: float = entries[0].tiles
        else:
            info = self.store(spec)
            if info is None:
                return None
            subset = info.splits["train"].tiles * spec.regime.label_fraction
        protocol = spec.protocol
        steps = max(1, int(subset * protocol.crops_per_tile) // protocol.batch_size)
        return steps * protocol.batch_size * protocol.epochs

    def seconds(self, spec: TrialSpec, fits: Callable[[str], bool] = lambda device: True) -> float | None:
        """Wall time of a trial as recorded on a device that ``fits``; None where nothing was."""
        tiles = self.training_tiles(spec)
        found = [entry.seconds_a_tile for entry in self.recorded(spec) if fits(entry.device)]
        return median(found) * tiles if found and tiles is not None else None

    def relative_seconds(self, spec: TrialSpec) -> float:
        """How long a trial takes beside others, for ordering them: as recorded, else by its tiles at the usual pace."""
        key = (spec.encoder.name, spec.dataset.name, spec.regime.name, spec.protocol)
        if key not in self._relative:
            tiles = self.training_tiles(spec) or 0
            guess = tiles * self._usual_pace * (1.0 if spec.trains_encoder else 0.5)
            recorded = self.seconds(spec)
            self._relative[key] = guess if recorded is None else recorded
        return self._relative[key]

    def memory_mb(self, spec: TrialSpec) -> float | None:
        """The largest recorded peak of such a trial; None where nothing was."""
        return max((entry.memory_mb for entry in self.recorded(spec)), default=None)

    def gmacs(self, spec: TrialSpec) -> float | None:
        """10^9 multiply-adds for one crop, as recorded."""
        return next((entry.gmacs for entry in self.recorded(spec) if entry.gmacs is not None), None)


def _read(storage: Path) -> dict[Cell, list[Recorded]]:
    if not table_path(storage).exists():
        return {}
    try:
        rows = read_leaderboard(storage).select(_COLUMNS).to_pylist()
    except CryobenchError:
        return {}  # a projection; `cryobench sync` says what is wrong with it
    cells: dict[tuple[Cell, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["status"] == "completed" and row["training_tiles"] and row["device"]:
            cells[(row["encoder"], row["dataset"], row["regime"]), row["device"]].append(row)
    found: dict[Cell, list[Recorded]] = defaultdict(list)
    for (cell, device), some in sorted(cells.items()):
        paces = [pace for row in some[:_RESULTS_A_CELL] if (pace := _pace(storage, row["trial_id"])) is not None]
        if paces:
            found[cell].append(
                Recorded(
                    device=device,
                    tiles=some[0]["training_tiles"],
                    seconds_a_tile=median(paces),
                    memory_mb=max(row["peak_memory_mb"] or 0.0 for row in some),
                    gmacs=some[0]["gmacs"],
                )
            )
    return found


def _pace(storage: Path, trial: str) -> float | None:
    """Seconds of a whole trial by tiles that it trained on; None where its result does not say."""
    try:
        plain = json.loads((storage / "trials" / trial / RESULT).read_bytes())
        cost = plain["cost"]
        # The last attempt alone may be short: then it is training that took the time.
        seconds = max(float(cost["total_seconds"]), float(cost["train_seconds"]))
        tiles = float(cost["tiles_per_second"]) * float(cost["train_seconds"])
        return seconds / tiles if tiles > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
