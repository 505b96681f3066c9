"""Loading a published checkpoint: strict, without unpickling, by the layout that its YAML names.

Every tensor that is missing, extra or of another shape is an error unless the configuration names it.
"""

from __future__ import annotations

import argparse
import pickle
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryobench.conf.digests import file_sha256
from cryobench.conf.errors import BadCheckpointError, MissingWeightsError
from cryobench.conf.schema import CheckpointLayout
from cryobench.encoders.base import Encoder

_ALLOWED = {"argparse.Namespace": argparse.Namespace}


def load_weights(encoder: Encoder, path: Path, layout: CheckpointLayout, digest: str | None = None) -> None:
    """Fill ``encoder`` from the published file ``path``.

    Args:
        encoder: freshly built; unchanged if the file does not fit.
        path: a file that `torch.load` reads with ``weights_only``, or safetensors.
        layout: how the file nests the encoder's tensors.
        digest: the SHA-256 that the file must have.

    Raises:
        MissingWeightsError: there is no such file.
        BadCheckpointError: the file is damaged, is another one, or does not fit.
    """
    if digest is not None and (found := file_digest(path)) != digest:
        raise BadCheckpointError(f"{path} has SHA-256 {found[:12]}…, the trial was planned with {digest[:12]}….")
    state = encoder.filter_checkpoint(_unnest(_read(path, layout), path, layout))
    wanted = encoder.state_dict()
    missing = []
    for name in wanted.keys() - state.keys():
        fill = next((how for pattern, how in layout.absent.items() if _matches(name, pattern)), None)
        if fill == "zero":
            state[name] = torch.zeros_like(wanted[name])
        elif fill == "keep" or name.endswith("num_batches_tracked"):
            state[name] = wanted[name]
        else:
            missing.append(name)
    extra = [n for n in state.keys() - wanted.keys() if not any(_matches(n, p) for p in layout.unused)]
    shaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    cast = [
        f"{name} {state[name].dtype} instead of {wanted[name].dtype}"
        for name in wanted.keys() & state.keys()
        if not _loses_nothing(state[name].dtype, wanted[name].dtype)
    ]
    infinite = [n for n in wanted.keys() & state.keys() if not bool(torch.isfinite(state[n]).all())]
    problems = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:4])}{' …' if len(names) > 4 else ''}"
        for what, names in (
            ("missing", missing),
            ("extra", extra),
            ("of another shape", shaped),
            ("of a kind that would be cast", cast),
            ("with infinite values or no numbers", infinite),
        )
        if names
    ]
    if problems:
        raise BadCheckpointError(
            f"{path} does not fit the encoder: tensors {'; '.join(problems)}. Expected the published file; if these "
            "are right, name them under weights.layout (unused, absent) in the encoder's YAML."
        )
    encoder.load_state_dict({name: state[name] for name in wanted})


def _loses_nothing(found: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether a tensor may be filled from another dtype: reals from any precision of reals, all else from its like."""
    if wanted.is_floating_point:
        return found.is_floating_point
    return found == wanted


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read once; raises `MissingWeightsError` if it is not there."""
    try:
        return file_sha256(path)
    except FileNotFoundError as error:
        raise MissingWeightsError(f"No weights file {path}.") from error


def _matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` names ``name``, with or without the encoder's own leading module."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition(".")[2], pattern)


def _read(path: Path, layout: CheckpointLayout) -> Any:
    if not path.exists():
        raise MissingWeightsError(f"No weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([_ALLOWED[name] for name in layout.allow]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadCheckpointError(
            f"{path} holds more than tensors and plain data, and is not opened: {str(error).splitlines()[0][:300]} "
            "Loading it fully could run code from the file. Expected the published file; fetch it again."
        ) from error
    except Exception as error:  # a damaged file makes the readers raise whatever they meet first
        raise BadCheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: {str(error)[:200]}. "
            "It is truncated or not a checkpoint; fetch it again."
        ) from error


def _unnest(content: Any, path: Path, layout: CheckpointLayout) -> dict[str, Tensor]:
    if layout.key is not None:
        if not isinstance(content, dict) or layout.key not in content:
            found = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
            raise BadCheckpointError(f"{path}: expected the tensors under '{layout.key}', found {found}.")
        content = content[layout.key]
    if not isinstance(content, dict):
        raise BadCheckpointError(f"{path}: expected named tensors, found {type(content).__name__}.")
    if layout.nested:
        flat = [str(name) for name, part in content.items() if not isinstance(part, dict)]
        if flat:
            raise BadCheckpointError(f"{path}: expected a dictionary of state dicts, found {', '.join(flat[:4])}.")
        content = {f"{outer}.{name}": t for outer, part in content.items() for name, t in dict(part).items()}
    state, foreign = {}, []
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            foreign.append(str(name))
        elif not isinstance(name, str):
            foreign.append(f"{name!r}, a name that is no text")
        elif tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            foreign.append(f"{name}, which holds no plain values ({tensor.layout}, {tensor.device})")
        elif name.startswith(layout.prefix):
            state[name.removeprefix(layout.prefix)] = tensor
        elif not any(fnmatchcase(name, pattern) for pattern in layout.unused):
            foreign.append(name)
    if not state or foreign:
        what = f"tensors outside prefix '{layout.prefix}'" if foreign else f"no tensor with prefix '{layout.prefix}'"
        raise BadCheckpointError(
            f"{path}: {what}: {', '.join((foreign or list(map(str, content)))[:4])}. Expected the published file; if "
            "these are right, name them under weights.layout.unused in the encoder's YAML."
        )
    return state
