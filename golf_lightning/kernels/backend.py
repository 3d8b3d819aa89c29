"""Which implementation the fused operations use: plain PyTorch, or kernels for Hopper and data-centre Blackwell."""

import functools
import importlib.metadata
import importlib.util
from typing import Literal

import torch

from golf_lightning.errors import GolfError

KernelBackend = Literal["auto", "reference", "triton"]


@torch.compiler.assume_constant_result
def choose_kernels(backend: KernelBackend, device: torch.device, dtype: torch.dtype) -> KernelBackend:
    """Resolve ``auto`` to the fastest backend that works on ``device`` in ``dtype``; check an explicit choice.

    The Triton kernels multiply in 16 bits, and the MLP's keep 224 KiB of tiles in a multiprocessor's shared memory:
    compute capability 9 and 10 have that, 8 and 12 do not.

    Raises:
        GolfError: ``triton`` was asked for where it cannot run.
    """
    if backend == "reference":
        return "reference"
    reason = _missing(device, dtype)
    if reason is None:
        return "triton"
    if backend == "triton":
        raise GolfError(f"Kernels 'triton' need {reason}; choose auto or reference.")
    return "reference"


def _missing(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in (9, 10):
        return f"a GPU of compute capability 9 or 10, not {device}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"compute dtype bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton (pip install triton)"
    return None


QUACK_VERSION = "0.6.5"
"""The version of quack-kernels whose calls :mod:`~golf_lightning.kernels.cute_mlp` knows."""


@torch.compiler.assume_constant_result
def chooses_cute(backend: KernelBackend, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the MLP's fused products are those of :mod:`~golf_lightning.kernels.cute_mlp`, not Triton's."""
    return cute_lacks(backend, device, dtype) is None


def cute_lacks(backend: KernelBackend, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is missing for :func:`chooses_cute`, in words; only ``auto`` asks for it."""
    if backend != "auto":
        return "--model.kernels auto"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return "a GPU of compute capability 9.0"
    return _cute_package_lacks() if dtype == torch.bfloat16 else "compute dtype bfloat16"


@functools.cache
def _cute_package_lacks() -> str | None:
    from golf_lightning.kernels.cute_mlp import epilogues

    try:
        version = importlib.metadata.version("quack-kernels")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if version != QUACK_VERSION:
        return f"quack-kernels {QUACK_VERSION}, not {version} (pip install quack-kernels=={QUACK_VERSION})"
    try:
        epilogues()
    except (AttributeError, ImportError, TypeError) as error:
        return f"quack-kernels {QUACK_VERSION} with all that it needs ({' '.join(str(error).split())})"
    return None
