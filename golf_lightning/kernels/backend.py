"""Which implementation the fused operations use: plain PyTorch, or Triton kernels for Hopper and later."""

import importlib.util
from typing import Literal

import torch

from golf_lightning.errors import GolfError

KernelBackend = Literal["auto", "reference", "triton"]


@torch.compiler.assume_constant_result
def choose_kernels(backend: KernelBackend, device: torch.device, dtype: torch.dtype) -> KernelBackend:
    """Resolve ``auto`` to the fastest backend that works on ``device`` in ``dtype``; check an explicit choice.

    The Triton kernels multiply in 16 bits and copy tiles with the bulk copy engine of compute capability 9.

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
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 9:
        return f"a GPU of compute capability 9 or more, not {device}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"compute dtype bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton (pip install triton)"
    return None
