"""Kinds of device errors, and what each one costs.

Out of memory: fewer rows help. A *sticky* error: only a new process helps, because every later CUDA call
fails with it. Any other error fails one row of the call.
"""

from __future__ import annotations

import gc

import torch

from schemas.errors import DreamError

_MEMORY = (
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",
)
_STICKY = (
    "device-side assert",
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc",
    "invalid program counter",
    "cuda error: launch",
    "device lost",
)


class StickyDeviceError(DreamError):
    """The CUDA context is lost: this process must end; a new one can continue."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer rows could help."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MEMORY)


def is_sticky(error: BaseException) -> bool:
    """Whether every later call on the device will fail too."""
    if isinstance(error, StickyDeviceError):
        return True
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return any(known in text for known in _STICKY) or ("cuda error" in text and not _gpu_works())


def _gpu_works() -> bool:
    """Whether the GPU can still add one and one: decides where the error's text is not known."""
    if not torch.cuda.is_available():
        return True
    try:
        return float((torch.ones(1, device="cuda") + 1).item()) == 2.0
    except RuntimeError:
        return False


def describe(error: BaseException) -> str:
    """The error's type and text, in one line."""
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def free_memory() -> None:
    """Return the memory of freed tensors to the device. Call it outside `except`: a traceback holds tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
