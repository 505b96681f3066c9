"""From a sweep to its trials: enumerated, each once, with what is known of each before anything runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cryobench.conf.dataset_spec import DatasetSpec
from cryobench.conf.schema import EncoderSpec, RegimeSpec, SweepSpec
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.suggestions import SearchCell, read_suggestions
from cryobench.orchestrator.sweep.trial_maker import PlannedTrial, TrialMaker, planned

#: States of trials that a sweep will run.
RUNNABLE = ("pending", "begun")
#: States of trials for which something has to be brought first.
_BLOCKED = ("missing_data", "missing_weights", "bad_checkpoint", "not_built", "impossible")


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep, in order: data sets outermost, so that a node's cache serves neighbours.

    ``cells`` are those whose rates are searched beyond the trials that are there.
    """

    sweep: SweepSpec
    trials: tuple[PlannedTrial, ...]
    cells: tuple[SearchCell, ...] = ()

    def to_run(self, retry_failed: bool = False, retry_pruned: bool = False) -> list[PlannedTrial]:
        """What a sweep would run now. What was stopped early goes on where nothing would stop it again."""
        pruned_too = retry_pruned or self.sweep.scheduler == "none"
        return [
            t
            for t in self.trials
            if t.state in RUNNABLE
            or (t.state == "failed" and (retry_failed or not t.waits_for_user))
            or (t.state == "pruned" and pruned_too)
        ]

    @property
    def to_suggest(self) -> int:
        """How many rates are still to be suggested, each of which makes a trial."""
        samples = self.sweep.lr_search.samples if self.sweep.lr_search else 0
        return sum(cell.left(samples) for cell in self.cells)

    @property
    def trial_ids(self) -> list[str]:
        """The ids that are known for good."""
        return [t.spec.trial_id for t in self.trials if not t.provisional]

    @cached_property
    def blocked(self) -> list[PlannedTrial]:
        """Trials that cannot run before something is brought."""
        return [t for t in self.trials if t.state in _BLOCKED]

    def missing(self) -> dict[str, int]:
        """Each thing that is missing, in words, with the number of trials that wait for it."""
        return dict(Counter(t.message or t.state for t in self.blocked))

    def counts(self) -> dict[str, dict[str, int]]:
        """Trials by encoder, data set, regime and state."""
        rows = [t.row() for t in self.trials]
        return {key: dict(Counter(str(row[key]) for row in rows)) for key in ("encoder", "dataset", "regime", "state")}

    def as_json(self) -> dict[str, Any]:
        """The plain form for ``--json``."""
        return {
            "sweep": self.sweep.name,
            "total": len(self.trials),
            "to_suggest": self.to_suggest,
            "counts": self.counts(),
            "missing": self.missing(),
            "trials": [t.row() for t in self.trials],
        }


def make_plan(sweep: SweepSpec, where: Places) -> Plan:
    """Enumerate the trials of ``sweep``, each id once, and look up what is known of each.

    Of a search the rates that were suggested before are among them.
    """
    maker = TrialMaker(sweep, where)
    trials: dict[str, PlannedTrial] = {}
    cells: dict[str, SearchCell] = {}
    suggested: dict[str, list[float]] = defaultdict(list)
    if sweep.search == "optuna":
        where.bring_sweeps()
        for suggestion in read_suggestions(where.storage, sweep.name):
            suggested[suggestion.rivals].append(suggestion.lr)
    for encoder, dataset, regime in _grid(sweep):
        rates = _rates(sweep, dataset, regime)
        found = [maker.trial(encoder, dataset, regime, lr, seed) for lr in rates for seed in sweep.seeds]
        if sweep.search == "optuna" and _is_searched(sweep, dataset, regime):
            template = found[0].spec
            more = tuple(suggested[template.rivals_id])
            cells.setdefault(template.rivals_id, SearchCell(template, more, blocked=found[0].provisional))
            found += [maker.trial(encoder, dataset, regime, lr, seed) for lr in more for seed in sweep.seeds]
        for trial in found:
            trials.setdefault(trial.spec.trial_id, trial)
    plan = Plan(sweep, tuple(trials.values()), tuple(cells.values()))
    return refreshed(plan, where) if where.storage_url else plan  # of a store, all at once


def refreshed(plan: Plan, where: Places) -> Plan:
    """The same plan with what its trials' folders say now.

    Raises:
        StorageError: the object store cannot be reached.
    """
    ready = [trial for trial in plan.trials if not trial.provisional]
    where.bring_trials([name for trial in ready for name in (trial.spec.trial_id, *trial.spec.former_ids)])
    trials = (trial if trial.provisional else planned(trial.spec, where.storage) for trial in plan.trials)
    return replace(plan, trials=tuple(trials))


def _grid(sweep: SweepSpec) -> Iterator[tuple[EncoderSpec, DatasetSpec, RegimeSpec]]:
    for dataset in sweep.datasets:
        for encoder in sweep.encoders:
            for regime in sweep.regimes:
                yield encoder, dataset, regime


def _rates(sweep: SweepSpec, dataset: DatasetSpec, regime: RegimeSpec) -> list[float]:
    """The rates that are asked for by number."""
    rates = list(sweep.lr)
    if sweep.lr_search and sweep.search == "grid" and _is_searched(sweep, dataset, regime):
        rates += [rate for rate in sweep.lr_search.lr if rate not in rates]
    return rates


def _is_searched(sweep: SweepSpec, dataset: DatasetSpec, regime: RegimeSpec) -> bool:
    search = sweep.lr_search
    return search is not None and regime.name in search.regimes and dataset.name in (search.datasets or [dataset.name])
