"""Parameters, gradients and gloo processes for the tests of the optimizer."""

import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from golf_lightning.__main__ import end_process
from golf_lightning.optim.config import OptimizerConfig

SHAPES = {
    "qo": (4, 12, 12),
    "kv": (3, 6, 12),
    "up": (5, 24, 12),
    "down": (1, 12, 24),
    "embedding": (17, 12),
    "mix": (2, 2, 12),
    "q_gain": (2, 3),
    "lane_balance": (),
}
"""Square, wide and tall banks; three of them do not divide by two ranks."""

EXACT = OptimizerConfig(communication_dtype="float32", newton_schulz_dtype="float64")
UNCLIPPED = dataclasses.replace(EXACT, clip_norm=0.0)


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def gradients(step: int, rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def set_gradients(named: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in named.items():
        parameter.grad = values[name].clone()


def start_ranks(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Run ``function(rank, *arguments)`` in ``count`` processes of their own, and wait for all.

    They are forked from a process that has imported what takes seconds, once for all tests, and done nothing else.
    """
    preload()
    mp.start_processes(function, arguments, count, start_method="forkserver")


def preload() -> None:
    """Have the process that others are forked from import what takes seconds, if it has not been started yet."""
    multiprocessing.set_forkserver_preload(["golf_lightning.cli", "callbacks.run_folder"])


def run_on_ranks(work: Callable[[int], Any], world_size: int, folder: Path) -> list[Any]:
    """What ``work(rank)`` returned on each of ``world_size`` real gloo processes."""
    start_ranks(_rank, (work, world_size, str(folder)), world_size)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _rank(rank: int, work: Callable[[int], Any], world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    end_process(0)
