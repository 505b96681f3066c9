"""One cell of a table: which learning rate stands for it, and what its seeds say.

A rate is chosen by validation among rates that have the same seeds. So one lucky seed of one rate never stands against
the mean of three of another; what cannot take part in the choice is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """Test mIoU in percent of one system on one data set.

    ``miou`` is the mean over ``seeds`` at the rate ``lr``, None where no trial was tested; ``spread`` the sample
    standard deviation over them, None for a single seed. ``diverged`` and ``failed`` count the trials of the cell that
    did, at whatever rate. ``remarks`` say what was left out of the choice, and which seeds are missing.
    """

    miou: float | None
    spread: float | None
    seeds: tuple[int, ...]
    lr: float | None
    rates: int
    diverged: int
    failed: int
    trials: tuple[str, ...]
    remarks: tuple[str, ...]


def cell_of(rows: Iterable[Row]) -> Cell:
    """The cell of trials that share everything but learning rate and seed, in whatever order they come."""
    rows = sorted(rows, key=lambda row: (row["lr"], row["seed"], row["trial_id"]))
    rates = sorted({row["lr"] for row in rows})
    tested: dict[float, dict[int, Row]] = {}
    for row in rows:
        if row["test_miou"] is not None and row["best_val_miou"] is not None:
            tested.setdefault(row["lr"], {}).setdefault(row["seed"], row)
    # A result that cannot be read is no number either.
    failed = sum(row["status"] == "failed" or _unreadable(row) for row in rows)
    diverged = sum(row["status"] == "diverged" for row in rows)
    if not tested:
        return Cell(None, None, (), None, len(rates), diverged, failed, (), ())
    seeds = _seeds_to_compare(tested)
    candidates = [lr for lr, found in sorted(tested.items()) if set(seeds) <= found.keys()]
    best = max(candidates, key=lambda lr: (fmean(tested[lr][s]["best_val_miou"] for s in seeds), -lr))
    chosen = [tested[best][seed] for seed in seeds]
    scores = [row["test_miou"] for row in chosen]
    return Cell(
        miou=fmean(scores),
        spread=stdev(scores) if len(scores) > 1 else None,
        seeds=seeds,
        lr=best,
        rates=len(rates),
        diverged=diverged,
        failed=failed,
        trials=tuple(row["trial_id"] for row in chosen),
        remarks=tuple(_left_out(rows, tested, rates, candidates, best, seeds)),
    )


def _unreadable(row: Row) -> bool:
    return row["status"] == "completed" and row["test_miou"] is None


def _seeds_to_compare(tested: Mapping[float, Mapping[int, Row]]) -> tuple[int, ...]:
    """The most seeds that any rate has; of several such sets the one that most rates have, then the first."""
    sets = {tuple(sorted(found)) for found in tested.values()}
    shared = {s: sum(set(s) <= found.keys() for found in tested.values()) for s in sets}
    return min(sets, key=lambda s: (-len(s), -shared[s], s))


def _left_out(
    rows: list[Row],
    tested: Mapping[float, Mapping[int, Row]],
    rates: list[float],
    candidates: list[float],
    best: float,
    seeds: tuple[int, ...],
) -> Iterable[str]:
    for lr in rates:
        if lr in candidates:
            lost = sorted((r["seed"], r["status"]) for r in rows if r["lr"] == lr and r["seed"] not in tested[lr])
            if lost:
                yield f"lr {lr:g}: not tested: {', '.join(f'seed {seed} ({status})' for seed, status in lost)}"
            continue
        have = len(set(seeds) & tested.get(lr, {}).keys())
        ended = sorted({row["status"] for row in rows if row["lr"] == lr and row["test_miou"] is None})
        why = f" ({', '.join(ended)})" if ended else ""
        yield f"lr {lr:g} left out: {have} of {len(seeds)} seeds{why}"
    more = sorted(tested[best].keys() - set(seeds))
    if more:
        yield f"lr {best:g}: seeds {', '.join(map(str, more))} left out, which no other rate has"
