"""A whole small trial, ours and the reference's way, and where its wall time goes. Needs neither Ray nor MLflow.

Both train the same frozen encoder under the same decoder on the same generated lakes for as many epochs, validate every
fifth and at the end, and test once. The reference's way: GeoTIFFs read by rasterio for every sample, in a DataLoader
whose two processes are spawned every epoch; the loss fetched every step; evaluation a tile at a time; a pickled state.

The last line tells what keeping the features of the evaluation splits could save at most: the encoder's share of an
evaluation, times the evaluations' share of the trial.

Usage: python benchmarks/trial.py [--epochs 80] [--tiles 48 8 8] [--size 128] [--encoder s12_moco_small]
       [--channels 64] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from cryobench.conf.compose import load_dataset, load_sweep
from cryobench.conf.trial import TrialSpec
from cryobench.datasets.store.convert import convert
from cryobench.datasets.store.tile_store import TileStore
from cryobench.datasets.synth.generate import fitted, generate
from cryobench.orchestrator.places import Places
from cryobench.orchestrator.sweep.plan import make_plan
from cryobench.workers.model.build import build_model
from cryobench.workers.place import Place
from cryobench.workers.training.metrics import confusion, metrics
from cryobench.workers.training.windows import window_offsets
from cryobench.workers.trial import run_trial

PARTS = ("start", "data", "training", "evaluation", "checkpointing")
_FEED = {"B4": 0, "B3": 1, "B2": 2}


class ReferenceTiles(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Whole tiles as the reference reads them, cropped for training."""

    def __init__(self, store: TileStore, raw: Path, split: str, spec: TrialSpec) -> None:
        self.files = [(raw / r.image, raw / r.mask) for r in store.records(split)]  # type: ignore[arg-type]
        stats = store.info.groups["optical"].statistics
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (stats.mean, stats.std))
        self.bands, self.size = spec.encoder.bands["optical"], spec.encoder.input_size
        self.crops = split == "train"

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised bands, absent ones zero, and labels."""
        image, mask = self.files[index]
        with rasterio.open(image) as raster:
            values = (torch.from_numpy(raster.read().astype(np.float32)) - self.mean) / self.std
        with rasterio.open(mask) as raster:
            labels = torch.from_numpy(raster.read(1).astype(np.int64))
        if self.crops:
            assert isinstance(self.size, int)
            top, left = (int(torch.randint(0, side - self.size + 1, ())) for side in labels.shape)
            part = np.s_[..., top : top + self.size, left : left + self.size]
            values, labels = values[part], labels[part]
        full = torch.zeros(len(self.bands), *labels.shape)
        for place, name in enumerate(self.bands):
            if name in _FEED:
                full[place] = values[_FEED[name]]
        return full, labels


class Clock:
    """Wall time by what it was spent on."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Count what happens inside as ``what``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - began


def reference_trial(spec: TrialSpec, store: TileStore, raw: Path, folder: Path) -> tuple[dict[str, float], float]:
    """Wall time by part, and the test mIoU."""
    clock, protocol = Clock(), spec.protocol
    with clock("start"):
        torch.set_num_threads(protocol.cpu_threads)
        model = build_model(spec, len(store.info.classes), None)
        model.encoder.train()
        optimizer = torch.optim.AdamW(model.trained_parameters(), lr=spec.lr, weight_decay=protocol.weight_decay)
        train, val, test = (ReferenceTiles(store, raw, split, spec) for split in ("train", "val", "test"))

    def score(tiles: ReferenceTiles) -> float:
        model.eval()
        total = torch.zeros((2, 2), dtype=torch.int64)
        with torch.no_grad():
            for image, labels in DataLoader(tiles, 1, num_workers=2):
                size, (height, width) = spec.encoder.input_size, labels.shape[-2:]
                assert isinstance(size, int)
                merged, count = torch.zeros(1, 2, height, width), torch.zeros(height, width)
                for y in window_offsets(height, size):
                    for x in window_offsets(width, size):
                        merged[..., y : y + size, x : x + size] += model(
                            {"optical": image[..., y : y + size, x : x + size]}
                        )
                        count[y : y + size, x : x + size] += 1
                total += confusion((merged / count).argmax(1), labels, 2, 255)
        return metrics(total.numpy()).miou

    best = -1.0
    for epoch in range(1, protocol.epochs + 1):
        with clock("training"):
            model.train()
            model.encoder.train()
            loader = DataLoader(train, protocol.batch_size, shuffle=True, num_workers=2, drop_last=True)
            for image, labels in loader:
                loss = F.cross_entropy(model({"optical": image}), labels, ignore_index=255)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                loss.item()
        if epoch % protocol.eval_every == 0 or epoch == protocol.epochs:
            with clock("evaluation"):
                found = score(val)
            with clock("checkpointing"):
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "last.pth")
                if found > best:
                    best = found
                    torch.save(model.state_dict(), folder / "best.pth")
    with clock("evaluation"):
        model.load_state_dict(torch.load(folder / "best.pth"))
        result = score(test)
    return clock.seconds, result


def our_trial(spec: TrialSpec, place: Place) -> tuple[dict[str, float], float]:
    """Wall time by part, and the test mIoU."""
    began = time.perf_counter()
    result = run_trial(spec, place)
    total = time.perf_counter() - began
    seconds = dict(result.cost.seconds)
    assert result.test is not None
    return {"start": total - sum(seconds.values()), **seconds}, result.test.miou


def encoder_share(spec: TrialSpec) -> float:
    """The encoder's share of a forward pass in evaluation."""
    model = build_model(spec, 2, None).eval()
    size = spec.encoder.input_size
    assert isinstance(size, int)
    image: Any = {"optical": torch.randn(8, len(spec.encoder.bands["optical"]), size, size)}

    def seconds(module: Any) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            module(image)
            times.append(time.perf_counter() - began)
        return sorted(times)[2]

    with torch.no_grad():
        return seconds(model.encoder) / seconds(model)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--tiles", type=int, nargs=3, default=(48, 8, 8))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--encoder", default="s12_moco_small")
    parser.add_argument("--channels", type=int, default=64, help="width of UPerNet")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cryobench-bench-") as name:
        folder = Path(name)
        generate("glid", folder / "raw", tiles=tuple(options.tiles), size=options.size)
        convert(fitted(load_dataset("glid"), options.size), folder / "raw", folder / "glid.zarr")
        where = Places(folder / "storage", folder, folder / "cache", folder / "weights")
        asked = [f"encoder={options.encoder}", "dataset=glid", "regime=frozen", "lr=1e-3", "lr_search=null"]
        asked += ["protocol=paper", f"protocol.epochs={options.epochs}", "weights=random"]
        asked += [f"protocol.decoder_channels={options.channels}"]
        (planned,) = make_plan(load_sweep(["sweep=demo", *asked]), where).trials
        spec = planned.spec
        place = Place(where.storage, where.data_dir, where.cache_dir, device="cpu")
        ours, our_miou = our_trial(spec, place)
        reference, reference_miou = reference_trial(spec, TileStore(folder / "glid.zarr"), folder / "raw", folder)
        share = encoder_share(spec)
    totals = {"ours": sum(ours.values()), "reference": sum(reference.values())}
    result: dict[str, Any] = {
        "seconds": {"ours": ours, "reference": reference},
        "ratio_to_reference": totals["reference"] / totals["ours"],
        "outside_training": 1 - ours["training"] / totals["ours"],
        "outside_training_and_evaluation": 1 - (ours["training"] + ours["evaluation"]) / totals["ours"],
        "test_miou": {"ours": our_miou, "reference": reference_miou},
        "keeping_features_saves_at_most": share * ours["evaluation"] / totals["ours"],
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{options.epochs} epochs, {options.tiles} tiles of {options.size} px, one thread; seconds:")
    for way, seconds in result["seconds"].items():
        parts = ", ".join(f"{part} {seconds[part]:.1f}" for part in PARTS)
        print(f"  {way:10} {totals[way]:7.1f}: {parts}; test mIoU {result['test_miou'][way]:.1f}")
    print(f"  the reference's way takes {result['ratio_to_reference']:.2f} times as long")
    print(f"  ours outside training: {100 * result['outside_training']:.1f} %, ", end="")
    print(f"outside training and evaluation: {100 * result['outside_training_and_evaluation']:.1f} %")
    print(f"  keeping evaluation features would save at most {100 * result['keeping_features_saves_at_most']:.1f} %")


if __name__ == "__main__":
    main()
