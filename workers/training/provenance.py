"""Which code, libraries and device produced a number."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "zarr", "rasterio")


@cache
def code_version() -> str:
    """The release, and where it runs from a checkout its commit, marked ``+changes`` if files differ from it."""
    release = version("cryobench")
    here = Path(__file__).resolve().parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return release
    return f"{release}+{head}{'+changes' if changed else ''}" if tracked else release


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide about numbers."""
    return {name: version(name) for name in _LIBRARIES}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()})"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
