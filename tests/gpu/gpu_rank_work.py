"""What two ranks with a GPU each do for the tests; importable by spawned processes."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from life_work import long_work
from ranks import EXACT, gradients, parameters
from torch import nn

from golf_lightning.__main__ import end_process
from golf_lightning.optim.agreement import assert_parameters_equal
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.exchange import LAG
from golf_lightning.optim.muon import MuonAdamW

STEPS = 4


def on_two_gpus(folder: Path) -> list[dict[str, Any]]:
    """What :func:`work` returned on each of two ranks."""
    mp.spawn(_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _rank(rank: int, folder: str) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    store = f"file://{folder}/store"
    dist.init_process_group("nccl", init_method=store, rank=rank, world_size=2, device_id=device)
    result = {"exact": exact(rank), "default": default(rank), "long work": long_work(rank, "cuda")}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


def joined(config: OptimizerConfig) -> tuple[MuonAdamW, dict[str, nn.Parameter]]:
    """The tests' parameters on this rank's GPU, and an optimizer that shares them with the other."""
    named = {name: nn.Parameter(parameter.data.cuda()) for name, parameter in parameters().items()}
    optimizer = MuonAdamW(named.items(), config)
    optimizer.join(dist.group.WORLD)
    return optimizer, named


def on_cpu(named: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in named.items()}


def exact(rank: int) -> dict[str, Any]:
    """Trains, saves, goes on; and goes on from the saved state with a fresh optimizer."""
    optimizer, named = joined(EXACT)
    by_step = [{name: value.cuda() for name, value in gradients(step, rank).items()} for step in range(2 * STEPS)]
    for step in range(STEPS):
        advance(optimizer, named, by_step[step])
    half_way = on_cpu(named)
    optimizer.consolidate_state_dict()
    saved = [copy.deepcopy(optimizer.state_dict()) if rank == 0 else None]
    dist.broadcast_object_list(saved, src=0)
    resumed, twins = joined(EXACT)
    with torch.no_grad():
        for name, parameter in twins.items():
            parameter.copy_(half_way[name])
    resumed.load_state_dict(saved[0])  # type: ignore[arg-type]
    for step in range(STEPS, 2 * STEPS):
        advance(optimizer, named, by_step[step])
        advance(resumed, twins, by_step[step])
    assert_parameters_equal(named.items())
    return {"half way": half_way, "end": on_cpu(named), "resumed": on_cpu(twins)}


def default(rank: int) -> dict[str, Any]:
    """The formats of a real run, in steps that may not wait for the device; and what both ranks agree on."""
    optimizer, named = joined(OptimizerConfig())
    by_step = [{name: value.cuda() for name, value in gradients(step, rank).items()} for step in range(6)]
    agreed = []
    for step, values in enumerate(by_step):
        if step == 1:
            # The first step allocates state, loads kernels and connects the ranks.
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        optimizer.exchange.send(step + 100.0 * rank, 15 if (step, rank) == (3, 1) else 0)
        advance(optimizer, named, values)
        if step >= LAG:
            agreed.append(tuple(optimizer.exchange.agreed()))
    torch.cuda.set_sync_debug_mode("default")
    assert_parameters_equal(named.items())
    return {"end": on_cpu(named), "agreed": agreed}


def advance(optimizer: MuonAdamW, named: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in named.items():
        parameter.grad = values[name].clone()
    optimizer.step()
