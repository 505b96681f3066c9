"""Golden references: proof that an implementation is right, without the real weights.

A golden file names every tensor of the reference's checkpoint with its shape, and statistics and samples of the
reference's outputs for seeded weights and inputs. The recipe turns names into values, so the same check runs
through a checkpoint file in the published layout and the real loader.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryobench.conf.errors import ConfigError
from cryobench.conf.schema import CheckpointLayout, EncoderSpec
from cryobench.conf.terms import Modality, Variant
from cryobench.encoders.checkpoints import load_weights
from cryobench.encoders.registry import family_class, is_built

GOLDEN_DIR = Path(__file__).parent / "golden_files"
#: Largest deviation of a sample from the reference, in standard deviations of the output.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """The outcome of one golden file; ``deviation`` in standard deviations of the output."""

    name: str
    deviation: float | None
    verdict: str

    @property
    def passed(self) -> bool:
        """Whether this check is no reason for alarm."""
        return self.verdict in ("ok", "not built yet")


def read_golden(path: Path) -> dict[str, Any]:
    """A golden file's content."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def noise(seed: int, key: str, shape: Iterable[int]) -> Tensor:
    """The recipe's standard normal float32 values for ``key``."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    return torch.from_numpy(generator.standard_normal(tuple(shape)).astype(np.float32))


def golden_tensor(seed: int, key: str, shape: Iterable[int]) -> Tensor:
    """The recipe's weights for the checkpoint key ``key``."""
    shape = tuple(shape)
    z = noise(seed, key, shape)
    last = key.rpartition(".")[2]
    if last == "running_var":
        return 1 + 0.1 * z.abs()
    if last == "weight" and len(shape) == 1:
        return 1 + 0.1 * z
    if last.startswith("gamma"):
        return 0.1 + 0.02 * z
    return 0.05 * z


def golden_state(golden: dict[str, Any]) -> dict[str, Tensor]:
    """All weights of a golden file, under the reference's names."""
    return {key: golden_tensor(golden["seed"], key, shape) for key, shape in golden["keys"].items()}


def golden_inputs(golden: dict[str, Any]) -> dict[Modality, Tensor]:
    """The inputs (B, bands, H, W) of a golden file; the single frame of a (B, bands, 1, H, W) one."""
    inputs = {m: noise(golden["seed"], spec["key"], spec["shape"]) for m, spec in golden["input"].items()}
    return {m: x.squeeze(2) if x.ndim == 5 else x for m, x in inputs.items()}


def deviation(outputs: Iterable[Tensor], golden: dict[str, Any]) -> float:
    """Largest difference to the reference over samples and statistics, in standard deviations; inf on other shapes."""
    outputs = list(outputs)
    if len(outputs) != len(golden["outputs"]):
        return float("inf")
    worst = 0.0
    for output, expected in zip(outputs, golden["outputs"], strict=True):
        if list(output.shape) != expected["shape"]:
            return float("inf")
        flat = output.detach().double().flatten()
        off = [abs(float(flat[i]) - value) for i, value in expected["samples"]]
        off.append(abs(float(flat.mean()) - expected["mean"]))
        off.append(abs(float(flat.std(correction=0)) - expected["std"]))
        worst = max(worst, max(off) / expected["std"])
        if not np.isfinite(worst):
            return float("inf")
    return worst


def published_file(golden: dict[str, Any], layout: CheckpointLayout | None, path: Path) -> None:
    """Write the golden weights as the published checkpoint would hold them."""
    state: dict[str, Any] = {(layout.prefix if layout else "") + k: v for k, v in golden_state(golden).items()}
    if layout and layout.nested:  # CROMA's file; the golden file calls its joint encoder cross_encoder
        outer: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            outer.setdefault(first.replace("cross_encoder", "joint_encoder"), {})[rest] = tensor
        state = outer
    torch.save({layout.key: state} if layout and layout.key else state, path)


def check_encoder(encoder: EncoderSpec, variant: Variant, golden: dict[str, Any]) -> Check:
    """Build ``encoder``, load the golden weights through a published file, compare its outputs."""
    name = golden["encoder"]
    if not is_built(encoder.family):
        return Check(name, None, "not built yet")
    chosen = encoder.variants[variant]
    bands = {m: tuple(spec["bands"]) for m, spec in golden["input"].items()}
    for modality, names in chosen.bands.items():
        if names != "dataset" and bands.get(modality) != tuple(names):
            return Check(name, None, f"takes {modality} bands {' '.join(names)}, the golden file has others")
    size = next(iter(golden["input"].values()))["shape"][-1]
    model = family_class(encoder.family, encoder.name).build(bands, size, {**encoder.settings, **chosen.settings})
    layout = chosen.weights.layout if chosen.weights else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (chosen.weights.file if chosen.weights else "scratch.pth")
        published_file(golden, layout, path)
        load_weights(model, path, layout or CheckpointLayout())
    with torch.no_grad():
        off = deviation(model.eval()(golden_inputs(golden)), golden)
    return Check(name, off, "ok" if off <= TOLERANCE else f"deviates by more than {TOLERANCE:g}")


def match_golden(golden: dict[str, Any], encoders: Iterable[EncoderSpec]) -> tuple[EncoderSpec, Variant] | None:
    """The encoder and variant that a golden file speaks of: ``name`` or ``name_variant``."""
    name = golden["encoder"]
    for encoder in encoders:
        for variant in encoder.variants:
            if name == f"{encoder.name}_{variant}" or (name == encoder.name and len(encoder.variants) == 1):
                return encoder, variant
    return None


def encoder_goldens(folder: Path) -> list[dict[str, Any]]:
    """The encoders' golden files in ``folder``, by name (decoders and the protocol have files of their own)."""
    if not folder.is_dir():
        raise ConfigError(f"--golden {folder} is not a folder. Expected one with <encoder>.json files.")
    found = [read_golden(path) for path in sorted(folder.glob("*.json"))]
    goldens = [golden for golden in found if "encoder" in golden]
    if not goldens:
        raise ConfigError(f"{folder} holds no golden file of an encoder (<encoder>.json).")
    return goldens
