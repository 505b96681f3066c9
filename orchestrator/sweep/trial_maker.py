"""From the names of a configuration to one trial: its data, weights and feed, and what is known of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cryobench.conf.dataset_spec import DatasetSpec, Statistics
from cryobench.conf.errors import ConfigError, CorruptDataError, CryobenchError, MissingDataError, StorageError
from cryobench.conf.feeding import View, choose_variant, feed
from cryobench.conf.schema import EncoderSpec, RegimeSpec, SweepSpec, VariantSpec
from cryobench.conf.terms import Modality, Setting, Variant
from cryobench.conf.trial import Feed, TrialDataset, TrialEncoder, TrialRegime, TrialSpec
from cryobench.datasets.batches.subsets import stratified_subset, subset_digest
from cryobench.datasets.raw.reader import require_built
from cryobench.datasets.store.store_info import StoreInfo, read_info
from cryobench.datasets.store.tile_store import TileStore
from cryobench.encoders import registry
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.supply.weights_folder import WeightsFolder
from cryobench.workers.record.folder import TrialFolder, TrialState


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of a plan.

    ``state`` is the folder's (pending, begun, pruned, completed, diverged, failed) or why it cannot run (missing_data,
    missing_weights, bad_checkpoint, not_built, impossible). The id is provisional while data or weights, which enter
    it, are missing.
    """

    spec: TrialSpec
    state: str
    message: str | None = None
    kind: str | None = None
    epoch: int = 0
    provisional: bool = False
    waits_for_user: bool = False

    def row(self) -> dict[str, Any]:
        """The plain form for ``--json``."""
        spec = self.spec
        return {
            "trial_id": spec.trial_id,
            "provisional": self.provisional,
            "encoder": spec.encoder.name,
            "dataset": spec.dataset.name,
            "regime": spec.regime.name,
            "lr": spec.lr,
            "seed": spec.seed,
            "variant": spec.encoder.variant,
            "weights": spec.encoder.weights.kind,
            "state": self.state,
            "epoch": self.epoch,
            "epochs": spec.protocol.epochs,
            "kind": self.kind,
            "message": self.message,
        }


@dataclass(frozen=True)
class _Pair:
    """An encoder on a data set: what all trials of the two share."""

    encoder: TrialEncoder
    view: Literal["reference", "actual", "either"]
    blocks: tuple[tuple[str, str], ...]


class TrialMaker:
    """Looks up stores, weights and what each encoder is fed of each data set once."""

    def __init__(self, sweep: SweepSpec, where: Places) -> None:
        self.sweep, self.where = sweep, where
        self.weights = WeightsFolder(where.weights_dir, where.cache_dir)
        self.stores: dict[str, StoreInfo | CryobenchError] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.pairs: dict[tuple[str, str], _Pair] = {}
        self.datasets: dict[tuple[str, float, int], TrialDataset] = {}
        self.regimes = {regime.name: TrialRegime.of(regime) for regime in sweep.regimes}
        self.begun = _folder_names(where.storage)

    def trial(
        self, encoder: EncoderSpec, dataset: DatasetSpec, regime: RegimeSpec, lr: float, seed: int
    ) -> PlannedTrial:
        """The trial of these five, as a sweep would run it."""
        if (encoder.name, dataset.name) not in self.pairs:
            self.pairs[encoder.name, dataset.name] = self._pair(encoder, dataset)
        pair = self.pairs[encoder.name, dataset.name]
        spec = TrialSpec(
            encoder=pair.encoder,
            dataset=self._dataset(dataset, regime.label_fraction, seed),
            regime=self.regimes[regime.name],
            lr=lr,
            seed=seed,
            protocol=self.sweep.protocol,
            view=pair.view,
        )
        if pair.blocks:
            state, message = pair.blocks[0]
            return PlannedTrial(spec, state, message, kind=state, provisional=True)
        if self.begun.isdisjoint((spec.trial_id, *spec.former_ids)):
            return PlannedTrial(spec, "pending")
        return planned(spec, self.where.storage)

    def _pair(self, encoder: EncoderSpec, dataset: DatasetSpec) -> _Pair:
        blocks: list[tuple[str, str]] = []
        store = self._store(dataset)
        if isinstance(store, CryobenchError):
            blocks.append((store.kind, str(store)))
        if not registry.is_built(encoder.family):
            try:
                registry.family_class(encoder.family, encoder.name)
            except CryobenchError as error:
                blocks.insert(0, ("not_built", str(error)))
        feeding = None
        variant: Variant = next(iter(encoder.variants))
        bands: dict[Modality, tuple[str, ...]] = {}
        try:
            variant = choose_variant(encoder, dataset, self.sweep.modality, self.sweep.view)
            bands, feeding = feed(encoder, variant, dataset, self.sweep.view)
        except ConfigError as error:
            blocks.insert(0, ("impossible", str(error)))
        weights, problem = self.weights.of(encoder, variant, self.sweep.weights)
        if problem:
            blocks.append((problem.kind, str(problem)))
        if self.sweep.statistics == "published" and isinstance(store, StoreInfo) and self._published(store) is None:
            blocks.append(
                (
                    "impossible",
                    f"No statistics are published for '{dataset.name}'. Set statistics=training, or give "
                    "published_statistics in its YAML and prepare it again.",
                )
            )
        chosen = encoder.variants[variant]
        trial_encoder = TrialEncoder(
            name=encoder.name,
            title=encoder.title,
            family=encoder.family,
            variant=variant,
            settings=encoder.settings | chosen.settings | self._reference_settings(chosen),
            input_size=encoder.input_size,
            decoder=encoder.decoder,
            baseline=encoder.baseline,
            bands=bands,
            feed=feeding or Feed(inputs={}),
            weights=weights,
        )
        return _Pair(trial_encoder, self._view(encoder, dataset, (variant, bands, feeding)), tuple(blocks))

    def _dataset(self, dataset: DatasetSpec, fraction: float, seed: int) -> TrialDataset:
        key = (dataset.name, fraction, seed if fraction < 1 else 0)
        if key not in self.datasets:
            store = self._store(dataset)
            known = isinstance(store, StoreInfo)
            self.datasets[key] = TrialDataset(
                name=dataset.name,
                store_digest=store.digest if isinstance(store, StoreInfo) else f"missing:{dataset.name}",
                statistics=self.sweep.statistics,
                published=self._published(store),
                origin=store.origin if isinstance(store, StoreInfo) else None,
                subset=self._subset(dataset, fraction, seed) if known else None,
            )
        return self.datasets[key]

    def _published(self, store: StoreInfo | CryobenchError) -> dict[str, Statistics] | None:
        """The values by which inputs are normalised, where they are not the store's own; its digest lacks them."""
        if self.sweep.statistics != "published" or not isinstance(store, StoreInfo):
            return None
        return {name: group.published for name, group in store.groups.items() if group.published} or None

    def _view(
        self, encoder: EncoderSpec, dataset: DatasetSpec, fed: object
    ) -> Literal["reference", "actual", "either"]:
        """The sweep's view, or ``either`` where the other one feeds the same."""
        other: View = "actual" if self.sweep.view == "reference" else "reference"
        try:
            variant = choose_variant(encoder, dataset, self.sweep.modality, other)
            same = (variant, *feed(encoder, variant, dataset, other)) == fed
        except ConfigError:  # the other view offers no band that the encoder takes
            same = False
        return "either" if same else self.sweep.view

    def _reference_settings(self, variant: VariantSpec) -> dict[str, Setting]:
        wanted = "encoder_settings" in self.sweep.protocol.reference_errors
        return variant.reference_settings if wanted else {}

    def _subset(self, dataset: DatasetSpec, fraction: float, seed: int) -> str | None:
        """The digest of a few-shot subset, from the class counts in the store's index."""
        if fraction >= 1:
            return None
        if dataset.name not in self.counts:
            self.counts[dataset.name] = TileStore(self.where.store(dataset.name)).class_pixels("train")
        bins = self.sweep.protocol.few_shot_bins
        return subset_digest(stratified_subset(self.counts[dataset.name], fraction, bins, seed))

    def _store(self, dataset: DatasetSpec) -> StoreInfo | CryobenchError:
        if dataset.name not in self.stores:
            try:
                require_built(dataset)
                info = read_info(self.where.store(dataset.name))
                _same_channels(dataset, info, self.where.store(dataset.name))
                self.stores[dataset.name] = info
            except MissingDataError as error:
                self.stores[dataset.name] = error
            except StorageError:
                raise
            except CryobenchError as error:
                self.stores[dataset.name] = _as_missing(error)
        return self.stores[dataset.name]


def planned(spec: TrialSpec, storage: Path) -> PlannedTrial:
    """A trial that could run, with what its folder says, also one that an earlier release named otherwise."""
    folder = TrialFolder(storage, spec.trial_id)
    for former in spec.former_ids:
        if not folder.path.exists():
            folder = TrialFolder(storage, former)
    state: TrialState = folder.state()
    return PlannedTrial(
        spec, state.status, state.message, kind=state.kind, epoch=state.epoch, waits_for_user=state.waits_for_user
    )


def _folder_names(storage: Path) -> set[str]:
    """The trials that have a folder, listed once: looking for each of thousands takes longer than all else."""
    try:
        return set(os.listdir(storage / "trials"))
    except FileNotFoundError:
        return set()


def _same_channels(dataset: DatasetSpec, info: StoreInfo, path: Path | str) -> None:
    """The store must hold the channels and classes that the configuration speaks of."""
    found, expected = info.dataset, dataset
    if [(c.name, c.group) for c in found.channels] != [(c.name, c.group) for c in expected.channels]:
        raise CorruptDataError(
            f"{path} holds the bands {' '.join(c.name for c in found.channels)}, the configuration of '{dataset.name}' "
            f"says {' '.join(c.name for c in expected.channels)}. Prepare the data set again, or correct its YAML."
        )
    if found.classes != expected.classes:
        raise CorruptDataError(
            f"{path} has the classes {json.dumps(found.classes)}, the configuration of '{dataset.name}' says "
            f"{json.dumps(expected.classes)}. Prepare the data set again, or correct its YAML."
        )


def _as_missing(error: CryobenchError) -> CryobenchError:
    """A store that cannot be used stands in the plan as missing data, with its own message."""
    return error if error.kind in ("missing_data", "not_built") else MissingDataError(str(error))
