"""Numbers that ride along with the gradients, so that all ranks act on the same clock and the same signals."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

LAG = 2
"""Steps between sending a value and acting on it."""

SIGNALS = 32
"""Signal numbers are below this; each has a slot of its own, so that a sum over ranks loses none."""

SLOTS = 1 + SIGNALS
"""Floats that the exchange adds to the packed all-reduce: rank 0's seconds, then one slot per signal number."""


class Agreed(NamedTuple):
    """What every rank knows alike.

    Attributes:
        elapsed_s: rank 0's training clock, in seconds (float32 precision: 0.06 ms at 600 s).
        signal: the highest signal number that any rank sent with that step; 0 when none did.
    """

    elapsed_s: float
    signal: int


@dataclass(slots=True)
class _Parcel:
    """Host memory of one step: what goes out, what comes back, and when it has come back (CUDA only)."""

    outgoing: Tensor
    returned: Tensor
    done: torch.cuda.Event | None = field(default=None)

    def wait(self) -> None:
        """Wait until it has come back, which is seldom asked for before it has."""
        if self.done is not None and not self.done.query():
            self.done.synchronize()


class StepExchange:
    """Sends the clock and a signal with each step and hands out what all ranks agreed on, ``LAG`` steps later.

    Steps count from 0 since :meth:`reset`. When k steps are done, :meth:`agreed` returns what went out with step
    k - ``LAG``; before that, the value of the reset and no signal. One process behaves exactly like many.

    On CUDA values return through an asynchronous copy into pinned memory. Asking for step k - 2 before launching step
    k makes the host wait at most until the GPU has done step k - 2: step k - 1 still runs, so the GPU never idles, and
    the host is never more than two steps ahead.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._device = torch.device("cpu")
        self._parcels: list[_Parcel] = []
        self._steps = 0
        self._start_s = 0.0
        self._elapsed_s = 0.0
        self._signal = 0

    def join(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        """Take part in ``group``, whose collectives run on ``device``; ``None`` means one process."""
        self._group = group
        self._device = device

    def reset(self, elapsed_s: float = 0.0) -> None:
        """Begin at step 0 with rank 0's ``elapsed_s``; every rank calls it, when training starts or continues."""
        start = torch.tensor([elapsed_s], dtype=torch.float32, device=self._device)
        if self._group is not None:
            dist.broadcast(start, src=dist.get_global_rank(self._group, 0), group=self._group)
        self._start_s = start.item()
        self.forget()

    def forget(self) -> None:
        """Drop what is under way and count steps from 0 again; needs no other rank."""
        self._parcels = []
        self._steps = 0
        self._elapsed_s = self._start_s
        self._signal = 0

    def send(self, elapsed_s: float, signal: int = 0) -> None:
        """Set what travels with the next step: this rank's seconds (only rank 0's count) and a signal number or 0.

        Without a call the next step carries the last seconds and no signal.
        """
        assert 0 <= signal < SIGNALS, f"signal {signal} has no slot"
        self._elapsed_s = elapsed_s
        self._signal = signal

    def agreed(self) -> Agreed:
        """What went out ``LAG`` steps ago; the same on every rank, and the same however often it is asked."""
        step = self._steps - LAG
        if step < 0:
            return Agreed(self._start_s, 0)
        parcel = self._parcels[step % len(self._parcels)]
        parcel.wait()
        elapsed_s, *counts = parcel.returned.tolist()
        return Agreed(elapsed_s, max(number for number, count in enumerate(counts) if count or number == 0))

    def write(self, slots: Tensor, rank: int) -> None:
        """Fill this rank's ``slots``, ``[SLOTS]`` float32 on the device, to be summed over ranks. For the optimizer."""
        if not self._parcels:
            self._parcels = [_parcel(slots.device) for _ in range(LAG + 1)]
        parcel = self._parcels[self._steps % len(self._parcels)]
        parcel.wait()  # the copy that last read this memory must be over before it changes
        parcel.outgoing.zero_()
        if rank == 0:
            parcel.outgoing[0] = self._elapsed_s
        if self._signal:
            parcel.outgoing[1 + self._signal] = 1.0
        self._signal = 0
        slots.copy_(parcel.outgoing, non_blocking=True)

    def read(self, slots: Tensor) -> None:
        """Start the copy of the summed ``slots`` to the host; ends the step. For the optimizer."""
        parcel = self._parcels[self._steps % len(self._parcels)]
        parcel.returned.copy_(slots, non_blocking=True)
        if parcel.done is not None:
            parcel.done.record()
        self._steps += 1


def _parcel(device: torch.device) -> _Parcel:
    cuda = device.type == "cuda"
    outgoing, returned = (torch.zeros(SLOTS, dtype=torch.float32, pin_memory=cuda) for _ in range(2))
    return _Parcel(outgoing, returned, torch.cuda.Event() if cuda else None)
