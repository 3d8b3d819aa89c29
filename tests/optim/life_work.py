"""What ranks do whose lives are watched; importable by spawned processes."""

import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from golf_lightning.optim.life_watch import LifeWatch

PATIENCE_S = 0.8


def spin(seconds: float) -> None:
    """Use the processor for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sum(range(1000))


def long_work(rank: int, device: str = "cpu") -> list[float]:
    """Three times the patience of computing, then of waiting for a program, on rank 0 alone; the agreed results.

    The collective's result is on ``device``, and reading it there is what rank 1 waits for.
    """
    watch = LifeWatch(rank, 2, _get_default_store().clone(), PATIENCE_S)
    watch.start()
    agreed = []
    for value in (1.0, 2.0):
        if rank == 0 and value == 1.0:
            spin(3 * PATIENCE_S)
        elif rank == 0:
            subprocess.run([sys.executable, "-c", f"import time; time.sleep({3 * PATIENCE_S})"], check=True)
        tensor = torch.tensor(value if rank == 0 else 0.0, device=device)
        dist.all_reduce(tensor)
        agreed.append(tensor.item())
    watch.close()
    return agreed
