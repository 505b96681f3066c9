"""Telling that memory ran out from what the libraries say."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
)


#: The most parts into which a batch is cut.
_MOST_PARTS = 4


class BatchMemoryError(MemoryError):
    """A training batch did not fit into memory; smaller parts of it might."""


def micro_batches_for(batch_size: int) -> int:
    """Into how many parts a batch that does not fit is cut: each has two crops at least, for batch norm."""
    return max(1, min(_MOST_PARTS, batch_size // 2))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on the device or in the process."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in _WORDS)


def gpu_memory() -> int | None:
    """Bytes that this process holds on its GPU; None where it uses none."""
    return torch.cuda.memory_reserved() or None if torch.cuda.is_available() else None


def release() -> None:
    """Give back what a finished trial held: a worker's next one may be small, and its neighbour large."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
