"""Named random streams: every random choice is drawn from a stream named after what it decides.

Two choices never share a stream, so adding one does not move the others, and a resumed trial draws for
epoch 7 what an undisturbed one would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and the stream's name parts, and on nothing else."""
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for one named purpose, e.g. ``stream(234, "order", epoch)``."""
    return np.random.default_rng(stream_seed(seed, *names))
