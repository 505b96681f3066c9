"""Telling that memory ran out from what the libraries say."""

from __future__ import annotations

import torch

_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on the device or in the process."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in _WORDS)
