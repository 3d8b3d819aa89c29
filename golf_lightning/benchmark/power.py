"""Energy and clock of a GPU while a benchmark runs, through NVML.

A board at its power limit lowers its clock until the energy of what it does fits into the time. There a change that
saves time alone gains little, and equal kernels take longer on data of which more bits change.
"""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import pynvml
import torch

Value = TypeVar("Value")


class PowerMeter:
    """Counters of one GPU; on a CPU, and where the driver does not tell, each is ``None``.

    Containers may lack the driver's library, a part of a GPU has no counters of its own, and virtual machines and
    consumer cards lack some: a benchmark is worth having without them.

    Args:
        device: of torch; ``CUDA_VISIBLE_DEVICES`` may have renumbered it.

    Attributes:
        limit_w: power in watts to which the board is held.
        limit_mhz: highest clock of its multiprocessors.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle = None
        if device.type == "cuda":
            uuid = torch.cuda.get_device_properties(device).uuid
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        milliwatts = self._ask(pynvml.nvmlDeviceGetEnforcedPowerLimit)
        self.limit_w = None if milliwatts is None else milliwatts / 1e3
        self.limit_mhz = self._ask(lambda handle: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM))

    def joules(self) -> float | None:
        """Energy of the board since the driver was loaded; moves about ten times a second."""
        millijoules = self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1e3

    def mhz(self) -> int | None:
        """Clock of the multiprocessors now."""
        return self._ask(lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))

    def _ask(self, question: Callable[..., Value]) -> Value | None:
        with contextlib.suppress(pynvml.NVMLError):
            return None if self._handle is None else question(self._handle)
        return None
