"""Training steps, the reference's way and ours, side by side in one run, on the CPU or a GPU.

Needs only torch, timm, torchvision and numpy: run it from a checkout on any machine that has these.

The reference's way: float32, channels first, eager; tiles read whole, made float32, cropped and normalised by a PyTorch
DataLoader's processes that are spawned anew every epoch; the loss is fetched after every step. Ours: crops cut by
threads from a memory-mapped array and normalised on the device, nothing waited for inside an epoch, a frozen encoder
without gradients, fused AdamW; once in the published precision, once in bfloat16 with channels last; compiled if asked.
Encoders are frozen under UPerNet with 512 channels, weights random.

A step is forward, backward and optimizer; data wait is what an epoch takes longer than the same steps on a batch that
is there already. Validation curves of both ways are compared on a task that can be learnt (--curves).

Usage: python benchmarks/train_step.py [--models vit_small vit_base vit_large swin_base] [--steps 20] [--batch 8]
       [--size 224] [--compile] [--curves] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

if "cryobench" not in sys.modules:  # from a checkout, without installing it or what else it needs
    package = types.ModuleType("cryobench")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["cryobench"] = package

from cryobench.datasets.batches.batch_loader import BatchLoader, EpochSampler
from cryobench.datasets.batches.tile_source import CachedTiles
from cryobench.encoders.swin import TimmSwin
from cryobench.encoders.vit import TimmVit
from cryobench.workers.model.decoders.upernet import UPerNet
from cryobench.workers.model.numerics import autocast, set_numerics
from cryobench.workers.model.segmentation import SegmentationModel, make_adamw, training_step

BANDS, SIDE, CLASSES = 10, 512, 2
MODELS: dict[str, tuple[type[TimmVit] | type[TimmSwin], dict[str, Any]]] = {
    "vit_small": (TimmVit, {"model": "vit_small_patch16_224", "taps": (3, 5, 7, 11), "norm": "none"}),
    "vit_base": (TimmVit, {"model": "vit_base_patch16_224", "taps": (3, 5, 7, 11), "norm": "none"}),
    "vit_large": (TimmVit, {"model": "vit_large_patch16_224", "taps": (7, 11, 15, 23), "norm": "none"}),
    "swin_base": (TimmSwin, {"model": "swin_base_patch4_window7_224", "window_size": 7}),
}
WAYS = ("reference", "ours_fp32", "ours_bf16")


class Tiles(CachedTiles):
    """Generated tiles in memory-mapped arrays, as the node cache holds them."""

    def __init__(self, folder: Path, count: int) -> None:
        rng = np.random.default_rng(0)
        images = np.lib.format.open_memmap(folder / "train-optical.npy", "w+", np.uint16, (count, BANDS, SIDE, SIDE))
        masks = np.lib.format.open_memmap(folder / "train-mask.npy", "w+", np.uint8, (count, SIDE, SIDE))
        for i in range(count):
            coarse = np.kron(rng.random((SIDE // 32, SIDE // 32)) > 0.5, np.ones((32, 32)))
            noise = rng.normal(0, 300, (BANDS, SIDE, SIDE))
            images[i] = (1000 + 400 * coarse * rng.uniform(0.5, 1.5, (BANDS, 1, 1)) + noise).clip(0, 65535)
            masks[i] = coarse
        super().__init__(folder, "train", ("optical", "mask"))
        sample = images[:4].astype(np.float64)
        self.mean, self.std = sample.mean(axis=(0, 2, 3)), sample.std(axis=(0, 2, 3))


class ReferenceTiles(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One sample as the reference makes it: the whole tile, float32, cropped, normalised."""

    def __init__(self, tiles: Tiles, size: int) -> None:
        self.tiles, self.size = tiles, size
        self.mean = torch.tensor(tiles.mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(tiles.std, dtype=torch.float32).view(-1, 1, 1)

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A crop and its labels."""
        whole = torch.from_numpy(self.tiles.crop("optical", index, 0, 0, SIDE, SIDE).astype(np.float32))
        labels = torch.from_numpy(self.tiles.crop("mask", index, 0, 0, SIDE, SIDE).astype(np.int64))
        top, left = (int(torch.randint(0, SIDE - self.size + 1, ())) for _ in range(2))
        part = np.s_[..., top : top + self.size, left : left + self.size]
        return (whole[part] - self.mean) / self.std, labels[part]


class Way:
    """One way of training: its model, its steps, its data."""

    def __init__(self, name: str, model: str, tiles: Tiles, options: argparse.Namespace) -> None:
        self.name, self.tiles, self.options = name, tiles, options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.reference = name == "reference"
        self.precision = "bf16" if name == "ours_bf16" else "fp32"
        set_numerics("fp32" if self.reference else self.precision)
        torch.manual_seed(0)
        family, settings = MODELS[model]
        encoder = family.build({"optical": tuple(f"b{i}" for i in range(BANDS))}, options.size, settings)
        decoder = UPerNet(encoder.channels, encoder.pyramid, options.channels, CLASSES, 0.1)
        self.model = SegmentationModel(encoder, decoder, False, "train" if self.reference else "eval").to(self.device)
        self.channels_last = self.precision == "bf16"
        if self.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options.compile and not self.reference:
            self.model.compile()
        trained = list(self.model.trained_parameters())
        if self.reference:
            self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05, foreach=False)
        else:
            self.optimizer = make_adamw(trained, 1e-4, (0.9, 0.999), 0.05)
        self.mean = torch.tensor(tiles.mean, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(tiles.std, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)

    def step(self, image: torch.Tensor, labels: torch.Tensor) -> Any:
        """One step on a batch that is on the device."""
        if self.reference:
            loss = F.cross_entropy(self.model({"optical": image}), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            return loss.item()
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return training_step(self.model, self.optimizer, {"optical": image}, labels, precision=self.precision)

    def batches(self, steps: int, epoch: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches on the device, an epoch of ``steps``."""
        size, count = self.options.batch, self.options.batch * steps
        if self.reference:
            data = torch.utils.data.Subset(ReferenceTiles(self.tiles, self.options.size), self._order(count, epoch))
            loader = DataLoader(data, size, num_workers=self.options.workers, drop_last=True, pin_memory=self.on_gpu)
            for image, labels in loader:
                yield image.to(self.device), labels.to(self.device)
            return
        sampler = EpochSampler(
            np.asarray(self._order(count, epoch)), (SIDE, SIDE), (self.options.size,) * 2, size, 1, epoch
        )
        with BatchLoader(self.tiles, ("optical",), threads=self.options.workers, ahead=8, pin=self.on_gpu) as ahead:
            for batch in ahead.load(sampler.epoch(epoch)):
                raw = batch.groups["optical"].to(self.device, non_blocking=True)
                labels = batch.mask.to(self.device, non_blocking=True).long()
                yield (raw.float() - self.mean) / self.std, labels

    def _order(self, count: int, epoch: int) -> list[int]:
        return [int(i) for i in np.random.default_rng(epoch).integers(0, len(self.tiles), count)]

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done all."""
        if self.on_gpu:
            torch.cuda.synchronize()


def seconds(way: Way, action: Callable[[], object], repeat: int) -> float:
    """Mean time of ``action``, after two to warm up."""
    for _ in range(2):
        action()
    way.wait()
    began = time.perf_counter()
    for _ in range(repeat):
        action()
    way.wait()
    return (time.perf_counter() - began) / repeat


def measure(name: str, model: str, tiles: Tiles, options: argparse.Namespace) -> dict[str, float]:
    """Everything of one way on one model."""
    way = Way(name, model, tiles, options)
    image, labels = next(way.batches(1))
    way.model.train()
    if way.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step = seconds(way, lambda: way.step(image, labels), options.steps)

    def forward() -> None:
        with autocast(way.precision, way.device):
            way.model({"optical": image})

    ahead = seconds(way, forward, max(2, options.steps // 2))
    way.wait()
    began, count = time.perf_counter(), 0
    for batch in way.batches(options.steps):
        way.step(*batch)
        count += 1
    way.wait()
    epoch = (time.perf_counter() - began) / count
    peak = torch.cuda.max_memory_allocated() / 2**20 if way.on_gpu else float("nan")
    return {
        "forward_ms": 1e3 * ahead,
        "backward_and_optimizer_ms": 1e3 * (step - ahead),
        "step_ms": 1e3 * step,
        "tiles_a_second": options.batch / epoch,
        "data_wait_share": max(0.0, 1 - step / epoch),
        "peak_memory_mib": peak,
    }


def curve(name: str, model: str, tiles: Tiles, options: argparse.Namespace) -> list[float]:
    """Validation accuracy (%) on held-out crops after each of a few epochs."""
    way = Way(name, model, tiles, options)
    held = list(way.batches(4, epoch=10_000))
    found = []
    for epoch in range(1, options.epochs + 1):
        way.model.train()
        for batch in way.batches(options.steps, epoch):
            way.step(*batch)
        way.model.eval()
        with torch.no_grad():
            right = [(way.model({"optical": i}).argmax(1) == labels).float().mean() for i, labels in held]
        found.append(100 * float(torch.stack(right).mean()))
    return found


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["vit_small", "vit_base"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--channels", type=int, default=512, help="width of UPerNet")
    parser.add_argument("--tiles", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="data-loading processes (reference), threads (ours)")
    parser.add_argument("--epochs", type=int, default=5, help="of --curves")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cryobench-bench-") as folder:
        tiles = Tiles(Path(folder), options.tiles)
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        )
        result: dict[str, Any] = {"device": device, "torch": torch.__version__, "batch": options.batch, "models": {}}
        for model in options.models:
            found: dict[str, Any] = {way: measure(way, model, tiles, options) for way in WAYS}
            rates = {way: values["tiles_a_second"] for way, values in found.items()}
            found["ratio_to_reference"] = {way: rates[way] / rates["reference"] for way in WAYS[1:]}
            if options.curves:
                found["validation_accuracy"] = {way: curve(way, model, tiles, options) for way in WAYS}
            result["models"][model] = found
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{device}, torch {torch.__version__}, batches of {options.batch} crops of {options.size} px")
    for model, found in result["models"].items():
        print(f"{model} under UPerNet-{options.channels}:")
        print(f"  {'':12}" + "".join(f"{key:>27}" for key in found["reference"]))
        for way in WAYS:
            print(f"  {way:12}" + "".join(f"{value:27,.2f}" for value in found[way].values()))
        print("  tiles a second, to the reference's: ", found["ratio_to_reference"])
        for way, values in found.get("validation_accuracy", {}).items():
            print(f"  validation accuracy, {way}: " + " ".join(f"{value:.1f}" for value in values))


if __name__ == "__main__":
    main()
