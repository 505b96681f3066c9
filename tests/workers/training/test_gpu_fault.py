"""What torch says when a card or its driver fails, and what it says for other reasons."""

import pytest

from cryobench.workers.training.gpu_fault import is_gpu_fault


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: unspecified launch failure",
        "Found no NVIDIA driver on your system.",
        "No CUDA GPUs are available",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_faults_of_the_card_are_told(text: str) -> None:
    assert is_gpu_fault(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x4 and 5x2)"),
        ValueError("No CUDA GPUs are available"),
    ],
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_gpu_fault(error)
