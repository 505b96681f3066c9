"""How torch computes a trial: its precision, and algorithms that always round alike. Needs torch alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from cryobench.conf.errors import ConfigError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
#: The two settings under which cuBLAS sums alike every time (its documentation, "Results reproducibility").
_ALIKE = (":4096:8", ":16:8")
#: What torch says of an operation that has no algorithm that always rounds alike.
_REFUSAL = "torch.use_deterministic_algorithms(True)"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a model runs at ``precision``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def set_numerics(precision: str, deterministic: bool = False) -> None:
    """Set torch up for a trial, before it first computes anything on a GPU.

    ``fp32`` leaves convolutions what torch's default is, as the published protocol does: TF32 on GPUs that have it.
    ``deterministic`` changes nothing about the precision.

    Raises:
        ConfigError: ``deterministic`` was asked for, and cuBLAS is set up otherwise.
    """
    _set_workspace(os.environ, deterministic)
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = True
    # The fastest of several algorithms is another one from run to run, and each rounds in its own way.
    torch.backends.cudnn.benchmark = not deterministic
    # Not as a warning: what has no such algorithm ends the trial.
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def plain_algorithms() -> Iterator[None]:
    """Torch's own choice of algorithms for as long as the context lasts."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def is_refusal(error: BaseException) -> bool:
    """Whether torch refused an operation because its result would vary from run to run."""
    return isinstance(error, RuntimeError) and _REFUSAL in str(error)


def _set_workspace(environment: MutableMapping[str, str], deterministic: bool) -> None:
    """Fix cuBLAS's working memory, which it looks up once, with the first product on a GPU.

    For every trial, because a process that runs one after another cannot change it later. It is torch's own default on
    newer GPUs.
    """
    if _WORKSPACE not in environment:
        if deterministic and torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise ConfigError(
                f"protocol.deterministic=true needs {_WORKSPACE}={_ALIKE[0]} before the GPU is first used, and this "
                "process used it already. Set the variable where you start it."
            )
        environment[_WORKSPACE] = _ALIKE[0]
    if deterministic:
        _check_workspace(environment)


def _check_workspace(environment: Mapping[str, str]) -> None:
    found = environment[_WORKSPACE]
    if found not in _ALIKE:
        raise ConfigError(
            f"protocol.deterministic=true: {_WORKSPACE} is {found!r}, expected one of {', '.join(_ALIKE)}, under "
            "which cuBLAS sums alike every time. Unset the variable, or set it to one of them."
        )
