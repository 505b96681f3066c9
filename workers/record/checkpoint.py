"""A trial's own checkpoints: tensors and plain data in one safetensors file, never a pickle.

``state.json`` names the latest and the best file with their digests and is replaced last, so it always points at
whole files; the files before them are removed only then.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cryobench.conf.digests import file_sha256
from cryobench.workers.record.events import EpochFinished
from cryobench.workers.record.files import plain_file_mode, write_json, write_whole

_POINTER = "state.json"


@dataclass(frozen=True)
class Position:
    """Where in an epoch training stands: steps done, their summed loss, and the random states for the next."""

    epoch: int
    step: int
    loss: Tensor
    cpu_random: Tensor
    gpu_random: Tensor | None = None


@dataclass(frozen=True)
class BestEpoch:
    """The first of the epochs with the best validation mIoU (percent)."""

    epoch: int
    val_miou: float


@dataclass(frozen=True)
class Progress:
    """How far training came: ``epoch`` whole epochs and, if it paused, part of the next.

    ``position`` is where in that next epoch it stands; ``micro_batches`` how many parts its batches are cut into.
    """

    epoch: int = 0
    history: tuple[EpochFinished, ...] = ()
    best: BestEpoch | None = None
    position: Position | None = None
    micro_batches: int = 1


@dataclass(frozen=True)
class TrainingState:
    """Everything that training changes: how far it came, the model's tensors, and the optimizer's ``state_dict``."""

    progress: Progress
    model: dict[str, Tensor]
    optimizer: dict[str, Any]

    def on_host(self) -> TrainingState:
        """A copy in host memory, which training no longer changes; a GPU is waited for."""
        position = self.progress.position
        if position is not None:
            gpu_random = None if position.gpu_random is None else _host_copy(position.gpu_random)
            loss, cpu_random = _host_copy(position.loss), _host_copy(position.cpu_random)
            position = replace(position, loss=loss, cpu_random=cpu_random, gpu_random=gpu_random)
        moments = {
            index: {name: _host_copy(value) if isinstance(value, Tensor) else value for name, value in values.items()}
            for index, values in self.optimizer["state"].items()
        }
        return TrainingState(
            progress=replace(self.progress, position=position),
            model={name: _host_copy(tensor) for name, tensor in self.model.items()},
            optimizer={"state": moments, "param_groups": copy.deepcopy(self.optimizer["param_groups"])},
        )


class UnusableCheckpointError(ValueError):
    """There is a checkpoint, and it cannot be continued from; the message says why."""


class Checkpoints:
    """The latest and the best checkpoint of one trial's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pointer: dict[str, Any] = {}

    def latest(self) -> TrainingState | None:
        """The latest state, or None where none was ever written. Its best weights are whole as well.

        Raises:
            UnusableCheckpointError: it is damaged. Other errors of reading are not its fault: a disk that is not there
                for a moment must not cost the trial its progress.
        """
        if not (self._folder / _POINTER).exists():
            return None
        try:
            self._pointer = read_pointer(self._folder)
            tensors = self._tensors("latest")
            plain = self._pointer["training"]
            if self._pointer.get("training_sha256", _plain_digest(plain)) != _plain_digest(plain):
                raise ValueError(f"{_POINTER} is not what was written")
            if plain["best"] is not None:
                self._check("best")
            progress = Progress(
                epoch=plain["epoch"],
                history=tuple(EpochFinished.model_validate(entry) for entry in plain["history"]),
                best=BestEpoch(**plain["best"]) if plain["best"] else None,
                position=_position(_part(tensors, "position"), plain["position"]),
                micro_batches=plain["micro_batches"],
            )
            optimizer = _optimizer_state(_part(tensors, "optimizer"), plain["param_groups"])
            return TrainingState(progress, _part(tensors, "model"), optimizer)
        except json.JSONDecodeError as error:
            raise UnusableCheckpointError(f"{_POINTER} is not whole JSON ({error})") from error
        except FileNotFoundError as error:
            raise UnusableCheckpointError(f"{error.filename} is missing") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise UnusableCheckpointError(f"{_POINTER} lacks {error}") from error
        except (ValueError, SafetensorError) as error:
            raise UnusableCheckpointError(str(error)) from error

    def forget(self) -> None:
        """Begin anew as far as this process knows; what was written stays until the next state is whole."""
        self._pointer = {}

    def best(self) -> dict[str, Tensor]:
        """Weights of the best validated epoch.

        Raises:
            ValueError, KeyError, OSError: there is no such file, or it is damaged.
        """
        if not self._pointer:
            self._pointer = read_pointer(self._folder)
        return _part(self._tensors("best"), "model")

    def save(self, state: TrainingState, is_best: bool) -> None:
        """Write the latest state, and the best weights if this is them; the old ones stay until this is whole."""
        pointer, progress = dict(self._pointer), state.progress
        latest = {f"model.{k}": v for k, v in state.model.items()}
        for index, values in state.optimizer["state"].items():
            latest |= {f"optimizer.{index}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        step = 0
        if progress.position is not None:
            step = progress.position.step
            latest["position.loss"] = progress.position.loss
            latest["position.cpu_random"] = progress.position.cpu_random
            if progress.position.gpu_random is not None:
                latest["position.gpu_random"] = progress.position.gpu_random
        pointer["latest"] = self._write(f"latest-{progress.epoch:04d}-{step:06d}.safetensors", latest)
        if is_best:
            weights = {f"model.{k}": v for k, v in state.model.items()}
            pointer["best"] = self._write(f"best-{progress.epoch:04d}.safetensors", weights)
        pointer["training"] = {
            "epoch": progress.epoch,
            "history": [epoch.values() for epoch in progress.history],
            "best": asdict(progress.best) if progress.best else None,
            "param_groups": state.optimizer["param_groups"],
            "position": [progress.position.epoch, progress.position.step] if progress.position else None,
            "micro_batches": progress.micro_batches,
        }
        pointer["training_sha256"] = _plain_digest(pointer["training"])
        write_json(self._folder / _POINTER, pointer)
        self._pointer = pointer
        keep = {pointer[name]["file"] for name in ("latest", "best") if name in pointer}
        for path in self._folder.glob("*.safetensors"):
            if path.name not in keep:
                path.unlink()
        for path in self._folder.glob(".*.tmp"):  # what killed processes left; this one may just be writing others
            if ".safetensors." in path.name or not path.name.endswith(f".{os.getpid()}.tmp"):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Begin anew: nothing written before is continued from."""
        self._pointer = {}
        (self._folder / _POINTER).unlink(missing_ok=True)
        for path in self._folder.glob("*.safetensors"):
            path.unlink()

    def drop_latest(self) -> None:
        """Remove what only continuing needs; the best weights stay."""
        if "latest" in self._pointer:
            (self._folder / self._pointer["latest"]["file"]).unlink(missing_ok=True)

    def _write(self, name: str, tensors: dict[str, Tensor]) -> dict[str, str]:
        plain = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
        path = self._folder / name

        def write(temporary: Path) -> None:
            save_file(plain, temporary)  # for its owner alone, whatever the umask
            temporary.chmod(plain_file_mode())

        write_whole(path, write)
        return {"file": name, "sha256": file_sha256(path)}

    def _tensors(self, which: str) -> dict[str, Tensor]:
        # Copied out of the mapping, which would else hold on to the file that the next state replaces.
        return {name: tensor.clone() for name, tensor in load_file(self._check(which)).items()}

    def _check(self, which: str) -> Path:
        entry = self._pointer[which]
        path = self._folder / str(entry["file"])
        if file_sha256(path) != entry["sha256"]:
            raise ValueError(f"{path.name} is not what was written (another digest)")
        return path


def read_pointer(folder: Path) -> dict[str, Any]:
    """What a trial's folder says of its checkpoints.

    Raises:
        ValueError, OSError: it says nothing that can be read.
    """
    try:
        plain = json.loads((folder / _POINTER).read_bytes())
    except RecursionError as error:
        raise ValueError(f"{_POINTER} is nested too deeply") from error
    if not isinstance(plain, dict) or not all(isinstance(plain.get(name, {}), dict) for name in ("latest", "best")):
        raise ValueError(f"{_POINTER} is not what was written")
    return plain


def weights_digest(model: dict[str, Tensor]) -> str:
    """SHA-256 over names and values of all weights: equal exactly when two models are, bit for bit."""
    digest = hashlib.sha256()
    for name in sorted(model):
        values = model[name].detach().to("cpu").contiguous()
        digest.update(f"{name}:{values.dtype}:{tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _host_copy(tensor: Tensor) -> Tensor:
    """Contiguous, as the file wants it, so that writing makes no copy of its own."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _plain_digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = prefix + "."
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def _position(tensors: dict[str, Tensor], plain: list[int] | None) -> Position | None:
    if plain is None:
        return None
    epoch, step = plain
    return Position(epoch, step, tensors["loss"], tensors["cpu_random"], tensors.get("gpu_random"))


def _optimizer_state(tensors: dict[str, Tensor], param_groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": param_groups}
