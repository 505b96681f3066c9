"""The data of one trial: its tiles on this node, its training subset, its crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cryobench.conf.errors import CorruptDataError
from cryobench.conf.schema import ResourceSpec
from cryobench.conf.terms import Split
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.batches.batch_loader import BatchLoader, EpochSampler, crop_size
from cryobench.datasets.batches.node_cache import open_tiles
from cryobench.datasets.batches.preprocess import Preprocess
from cryobench.datasets.batches.subsets import stratified_subset, subset_digest
from cryobench.datasets.batches.tile_source import TileSource
from cryobench.datasets.store.store_info import StoreInfo
from cryobench.datasets.store.tile_store import TileStore
from cryobench.workers.training.working_copies import working_copies


@dataclass(frozen=True)
class TrialData:
    """Everything that a trial reads."""

    info: StoreInfo
    tiles: Callable[[Split], TileSource]
    sampler: EpochSampler
    preprocess: Preprocess
    subset: NDArray[np.int64]

    def loader(self, resources: ResourceSpec, device: torch.device) -> BatchLoader:
        """A loader of the training crops."""
        return BatchLoader(
            self.tiles("train"),
            self.preprocess.groups,
            threads=resources.loader_threads,
            ahead=resources.prefetch_batches,
            pin=device.type == "cuda",
            stall_s=resources.stall_timeout_s,
        )

    def window(self, split: Split) -> tuple[int, int]:
        """Height and width of an evaluation window."""
        info = self.info.splits[split]
        return crop_size((info.height, info.width), self.preprocess.size or "tile")


def open_data(
    spec: TrialSpec,
    store_path: Path | str,
    cache_dir: Path,
    resources: ResourceSpec,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
) -> TrialData:
    """Open the store of a trial through the node cache.

    Raises:
        MissingDataError, CorruptDataError: no store, a damaged one, or another one than the trial was planned with.
    """
    store = TileStore(store_path)
    if store.info.digest != spec.dataset.store_digest:
        raise CorruptDataError(
            f"{store_path} has digest {store.info.digest[:12]}…, the trial was planned with "
            f"{spec.dataset.store_digest[:12]}…. The data changed since; plan again, or bring the old store back."
        )
    if spec.dataset.published is not None:
        found = {name: group.published for name, group in store.info.groups.items() if group.published}
        if found != spec.dataset.published:
            raise CorruptDataError(
                f"{store_path} has other published statistics than the trial was planned with. The data set's YAML "
                "changed since and it was prepared again; plan again, which gives a new trial."
            )
    tiles = open_tiles(
        store,
        cache_dir,
        int(resources.cache_limit_gb * 1e9),
        threads=resources.loader_threads,
        progress=progress,
        tell=tell,
        neighbours=lambda: working_copies(cache_dir),
    )
    protocol = spec.protocol
    subset = stratified_subset(
        store.class_pixels("train"), spec.regime.label_fraction, protocol.few_shot_bins, spec.seed
    )
    if spec.dataset.subset is not None and subset_digest(subset) != spec.dataset.subset:
        raise CorruptDataError(
            f"The training subset drawn here has digest {subset_digest(subset)[:12]}…, the trial was planned with "
            f"{spec.dataset.subset[:12]}…. The rule changed between releases; plan again, which gives a new trial."
        )
    size = None if spec.encoder.input_size == "tile" else spec.encoder.input_size
    train = store.info.splits["train"]
    sampler = EpochSampler(
        tiles=subset,
        tile_shape=(train.height, train.width),
        crop=crop_size((train.height, train.width), spec.encoder.input_size),
        batch_size=protocol.batch_size,
        crops_per_tile=protocol.crops_per_tile,
        seed=spec.seed,
    )
    preprocess = Preprocess(store.info, spec.encoder.feed, spec.dataset.statistics, size)
    return TrialData(store.info, tiles, sampler, preprocess, subset)
