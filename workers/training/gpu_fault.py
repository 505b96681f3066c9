"""Telling that a GPU failed from what torch says: the process cannot use it any more, and perhaps no other can."""

from __future__ import annotations

import re

#: Errors of the driver or the card. Those of a kernel's arguments (``device-side assert``) are the trial's own.
_FAULTS = re.compile(
    r"no CUDA-capable device|CUDA driver|NVIDIA driver|CUDA-capable device\(s\) is/are busy|uncorrectable ECC|"
    r"unspecified launch failure|an illegal memory access|illegal instruction|misaligned address|device unavailable|"
    r"CUDA unknown error|GPU is lost|launch timed out|hardware stack error|system not yet initialized|"
    r"CUBLAS_STATUS_(EXECUTION_FAILED|NOT_INITIALIZED|INTERNAL_ERROR)|CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)|"
    r"Torch not compiled with CUDA enabled|No CUDA GPUs are available",
    re.IGNORECASE,
)


def is_gpu_fault(error: BaseException) -> bool:
    """Whether ``error`` says that the GPU, its driver or their connection failed."""
    return isinstance(error, RuntimeError | AssertionError) and _FAULTS.search(str(error)) is not None
