"""The paper's table: systems x data sets with averages and ranks.

Rows of the leaderboard become cells of one comparability key each. What differs for a whole comparison (edition,
protocol, regime, view, statistics, generated or real data, the store of a data set) makes tables of its own; what
differs for one system (weights, modality, settings, parts of a batch) makes rows of its own, labelled by it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from cryobench.conf.benchmark_editions import Edition, edition_named, is_generated
from cryobench.orchestrator.results.cells import Cell, Row, cell_of
from cryobench.orchestrator.results.query import select

#: Parts of the key that make rows of their own where a system has several on one data set.
_SPLITS = ("weights_kind", "weights_digest", "variant", "modality", "encoder_digest", "micro_batches")
#: In place of a value that tells no rows apart.
_ANY = "any"
_REGIMES = {"frozen": 0, "few_shot": 1, "finetune": 2}


@dataclass(frozen=True)
class SystemRow:
    """One line of a table; averages are None where a named data set is missing."""

    encoder: str
    title: str
    label: str
    weights: str
    cells: Mapping[str, Cell]
    avg_miou: float | None = None
    avg_rank: float | None = None


@dataclass(frozen=True)
class ResultTable:
    """Systems that may be compared, best average rank first.

    ``edition`` is None for data outside of the benchmark; ``datasets`` are those named, over which is averaged;
    ``stores`` the digests that tell this table from another one whose data are different.
    """

    edition: str | None
    protocol: str
    regime: str
    view: str
    statistics: str
    generated: bool
    stores: Mapping[str, str]
    datasets: tuple[str, ...]
    rows: tuple[SystemRow, ...]

    @property
    def rates(self) -> int:
        """The most learning rates that any cell was chosen from."""
        return max((cell.rates for row in self.rows for cell in row.cells.values()), default=1)


@dataclass(frozen=True)
class _Comparison:
    """What is the same for all cells of a table."""

    edition: str | None
    protocol: str
    regime: str
    regime_digest: str
    statistics: str
    generated: bool


def result_tables(rows: Iterable[Row], edition: str, named: Sequence[str] | None = None) -> list[ResultTable]:
    """All tables that the rows of a leaderboard make, in whatever order they come.

    Args:
        rows: as plain data, with the columns of `cryobench.orchestrator.results.leaderboard.SCHEMA`.
        edition: whose data sets make the benchmark's tables; real data that it does not name make tables of their own.
        named: the data sets to average over outside of the edition; all that a table shows, if None.
    """
    rows = sorted(rows, key=lambda row: str(row["trial_id"]))
    origins = {row["store_digest"]: row["data_origin"] for row in rows if row["data_origin"] is not None}
    groups: dict[_Comparison, list[Row]] = defaultdict(list)
    for row in rows:
        generated = is_generated(origins.get(row["store_digest"]))
        inside = not generated and row["dataset"] in edition_named(edition).datasets
        groups[
            _Comparison(
                edition if inside else None,
                str(row["protocol"]),
                row["regime"],
                row["regime_digest"] or "",
                row["statistics"] or "training",
                generated,
            )
        ].append(row)
    order = sorted(
        groups,
        key=lambda c: (c.edition is None, c.generated, c.protocol, _REGIMES.get(c.regime, 9), c.regime, repr(c)),
    )
    return [table for what in order for table in _tables(what, groups[what], named)]


def ranked(rows: Sequence[SystemRow], datasets: Sequence[str], rank_by: str = "data_set") -> tuple[SystemRow, ...]:
    """Averages and ranks filled in, and sorted by them.

    Only rows with every data set are averaged and ranked, among each other: one that lacks a data set changes nobody
    else's numbers. Ranks are standard competition ranks (ties share the best), averaged over the data sets, or taken of
    the averages where ``rank_by`` is ``average``. Random foundation weights take no rank beside published ones.
    """
    published = any(row.weights == "published" for row in rows)
    cells = [
        {
            "place": i,
            "dataset": name,
            "miou": row.cells[name].miou,
            "competes": row.weights != "random" or not published,
        }
        for i, row in enumerate(rows)
        for name in datasets
        if name in row.cells and row.cells[name].miou is not None
    ]
    found = {line["place"]: line for line in select(_AVERAGES, cells, {"named": len(datasets)})} if cells else {}
    rank = "avg_rank" if rank_by == "data_set" else "rank_of_average"
    filled = [
        replace(
            row,
            avg_miou=found[i]["avg_miou"] if i in found else None,
            avg_rank=found[i][rank] if i in found else None,
        )
        for i, row in enumerate(rows)
    ]
    worst = float("inf")
    return tuple(
        sorted(
            filled,
            key=lambda r: (
                worst if r.avg_rank is None else r.avg_rank,
                -(r.avg_miou or 0),
                -sum(cell.miou is not None for cell in r.cells.values()),
                r.encoder,
                r.label,
            ),
        )
    )


#: favg is DuckDB's exact summation: an average does not depend on the order of its terms.
_AVERAGES = """
WITH complete AS (SELECT place FROM cells GROUP BY place HAVING count(*) = $named),
averages AS (
    SELECT place, favg(miou) AS avg_miou, any_value(competes) AS competes FROM cells SEMI JOIN complete USING (place)
    GROUP BY place
),
ranks AS (
    SELECT place, rank() OVER (PARTITION BY dataset ORDER BY miou DESC) AS rank
    FROM cells SEMI JOIN complete USING (place) WHERE competes
),
overall AS (
    SELECT place, rank() OVER (ORDER BY round(avg_miou, 9) DESC) AS rank_of_average FROM averages WHERE competes
)
SELECT place, avg_miou, (SELECT favg(rank) FROM ranks WHERE ranks.place = averages.place) AS avg_rank, rank_of_average
FROM averages LEFT JOIN overall USING (place)
"""


def _tables(what: _Comparison, rows: list[Row], named: Sequence[str] | None) -> Iterator[ResultTable]:
    edition: Edition | None = edition_named(what.edition) if what.edition else None
    for view, seen in _views(rows):
        stores: dict[str, set[str]] = defaultdict(set)
        for row in seen:
            stores[row["dataset"]].add(row["store_digest"])
        several = {name: sorted(found) for name, found in sorted(stores.items()) if len(found) > 1}
        for i, combination in enumerate(product(*several.values())):
            chosen = dict(zip(several, combination, strict=True))
            systems = _systems(seen, chosen, first=i == 0)
            if not systems:
                continue
            shown = sorted({name for row in systems for name in row.cells})
            datasets = edition.datasets if edition else tuple(named or shown)
            yield ResultTable(
                edition=what.edition,
                protocol=what.protocol,
                regime=what.regime,
                view=view,
                statistics=what.statistics,
                generated=what.generated,
                stores=chosen,
                datasets=datasets,
                rows=ranked(systems, datasets, edition.rank_by if edition else "data_set"),
            )


def _views(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each view; what is fed alike in both belongs to both."""
    views = sorted({row["view"] or "either" for row in rows} - {"either"}) or ["either"]
    for view in views:
        yield view, [row for row in rows if (row["view"] or "either") in (view, "either")]


def _systems(rows: list[Row], stores: Mapping[str, str], first: bool) -> list[SystemRow]:
    """The systems on these stores; one without any data in question stands in the ``first`` such table alone."""
    by_encoder: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_encoder[row["encoder"]].append(row)
    systems: list[SystemRow] = []
    for encoder, all_of_it in sorted(by_encoder.items()):
        concerned = any(row["dataset"] in stores for row in all_of_it)
        own = [row for row in all_of_it if stores.get(row["dataset"], row["store_digest"]) == row["store_digest"]]
        if own and (any(row["dataset"] in stores for row in own) if concerned else first):
            systems += _split(encoder, own)
    return systems


def _split(encoder: str, rows: list[Row]) -> list[SystemRow]:
    """One row of the table, or several where trials on one data set differ in more than rate and seed."""
    cells: dict[str, dict[tuple[Any, ...], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["dataset"]][tuple(_part(row, name) for name in _SPLITS)].append(row)
    for keys in cells.values():
        _join_failed(keys)
    alternatives = _alternatives(cells)
    partial = {
        key: tuple(key[i] if key[i] in values else _ANY for i, values in alternatives.items())
        for keys in cells.values()
        for key in keys
    }
    whole = {one for one in partial.values() if _ANY not in one}
    # What has no part in any difference stands in every row; where it fits none, it makes one.
    combinations = whole | {one for one in partial.values() if not any(_fits(one, other) for other in whole)}
    systems, parts = [], []
    for combination in sorted(combinations, key=repr):
        own: dict[str, list[Row]] = {}
        for dataset, keys in sorted(cells.items()):
            for key, found in keys.items():
                if _fits(partial[key], combination):
                    own.setdefault(dataset, []).extend(found)
        named = {_SPLITS[i]: value for i, value in zip(alternatives, combination, strict=True) if value != _ANY}
        example = min((row for found in own.values() for row in found), key=lambda row: row["trial_id"])
        kind = str(named.get("weights_kind") or _part(example, "weights_kind"))
        cells_of_row = {dataset: cell_of(found) for dataset, found in own.items()}
        systems.append(SystemRow(encoder, str(example["title"]), _label(named, kind), kind, cells_of_row))
        parts.append(named)
    return _with_distinct_labels(systems, parts)


def _alternatives(cells: Mapping[str, Mapping[tuple[Any, ...], list[Row]]]) -> dict[int, set[Any]]:
    """For each part that tells a system's rows apart, the values that do.

    Trials on one data set may differ in any part. Kind of weights and parts of a batch must be one over all data sets,
    and so must the weights file of a variant; variant, modality and what is fed rightly differ between data sets.
    """
    found: dict[int, set[Any]] = {}
    for i, name in enumerate(_SPLITS):
        groups: dict[Any, set[Any]] = defaultdict(set)
        for dataset, keys in cells.items():
            for key in keys:
                groups["data set", dataset].add(key[i])
                if name in ("weights_kind", "micro_batches"):
                    groups["all", ""].add(key[i])
                elif name == "weights_digest":
                    groups["variant", key[_SPLITS.index("variant")]].add(key[i])
        differing: set[Any] = set()
        for group, values in groups.items():
            inside = group[0] == "data set"
            known = values if inside else values - {None}
            if len(known) > 1:
                differing |= known
        if differing:
            found[i] = differing
    return found


def _fits(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(a in (_ANY, b) for a, b in zip(one, other, strict=True))


def _with_distinct_labels(systems: list[SystemRow], parts: Sequence[Mapping[str, Any]]) -> list[SystemRow]:
    """The rows with labels that are all different: where words do not do, digests follow."""
    labels = Counter(row.label for row in systems)
    found = []
    for row, differing in zip(systems, parts, strict=True):
        if labels[row.label] > 1:
            exact = [f"{name} {str(value)[:8]}" for name, value in differing.items()]
            row = replace(row, label=", ".join([row.label, *exact] if row.label else exact))
        found.append(row)
    return found


def _join_failed(keys: dict[tuple[Any, ...], list[Row]]) -> None:
    """A trial that failed never came to say in how many parts its batches run: it stands where the others of it do."""
    last = _SPLITS.index("micro_batches")
    for key in [key for key in keys if key[last] is None]:
        like = sorted((k for k in keys if k[last] is not None and k[:last] == key[:last]), key=repr)
        if like:
            keys[like[0]] += keys.pop(key)


def _part(row: Row, name: str) -> Any:
    if name == "weights_kind" and row.get(name) is None:  # a row of the first format
        weights = str(row["weights"])
        return weights if weights in ("random", "scratch") else "published"
    return row.get(name)


def _label(differing: Mapping[str, Any], kind: str) -> str:
    """What tells a row from the others of its system; random weights are always said."""
    parts = ["random weights"] if kind == "random" else []
    if differing.get("weights_kind") == "published":
        parts.append("published weights")
    if differing.get("weights_digest") and "weights_kind" not in differing:
        parts.append(f"weights {str(differing['weights_digest'])[:8]}")
    if "modality" in differing or "variant" in differing:
        parts.append(str(differing.get("modality") or differing["variant"]))
    elif "encoder_digest" in differing and "weights_kind" not in differing:
        parts.append(f"settings {differing['encoder_digest']}")
    if "micro_batches" in differing:
        count = differing["micro_batches"]
        parts.append("whole batches" if count == 1 else f"batches in {count} parts" if count else "no result")
    return ", ".join(parts)
