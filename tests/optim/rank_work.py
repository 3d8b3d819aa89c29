"""What the ranks of the distributed tests do; importable by spawned processes."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from adam_banks import AdamBanks
from ranks import EXACT, SHAPES, UNCLIPPED, gradients, parameters, set_gradients
from torch import nn

from golf_lightning.errors import GolfError
from golf_lightning.optim.agreement import assert_parameters_equal, assert_same_on_all_ranks
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.muon import MuonAdamW

STEPS = 4

COLLECTIVES = (
    ("reduce_scatter", 1, ("reduce_scatter_single", "reduce_scatter_tensor")),
    ("all_reduce", 0, ("all_reduce",)),
    ("all_gather", 0, ("all_gather_single", "all_gather_into_tensor")),
)
"""Each kind of collective, the position of its full-size tensor, and its names in different versions of torch."""


def joined(named: dict[str, nn.Parameter], config: OptimizerConfig) -> MuonAdamW:
    optimizer = MuonAdamW(named.items(), config)
    optimizer.join(dist.group.WORLD)
    return optimizer


def train(optimizer: MuonAdamW, named: dict[str, nn.Parameter], rank: int, first: int, last: int) -> None:
    for step in range(first, last):
        set_gradients(named, gradients(step, rank))
        optimizer.step()


def detached(named: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in named.items()}


def refuses(optimizer: MuonAdamW) -> bool:
    try:
        optimizer.state_dict()
    except AssertionError:
        return True
    return False


def counting_gather(held: list[int], real: Callable[..., Any]) -> Callable[..., Any]:
    """``dist.gather`` that notes the bytes it sends and receives into on this rank."""

    def call(sent: torch.Tensor, received: list[torch.Tensor] | None, **settings: Any) -> Any:
        held.append(sent.nbytes + sum(tensor.nbytes for tensor in received or []))
        return real(sent, received, **settings)

    return call


def exact(rank: int) -> dict[str, Any]:
    """Trains, saves, and goes on from the saved state with a fresh optimizer."""
    named = parameters()
    optimizer = joined(named, EXACT)
    train(optimizer, named, rank, 0, STEPS)
    norm, half_way = optimizer.grad_norm, {name: value.clone() for name, value in detached(named).items()}
    held: list[int] = []
    with mock.patch.object(dist, "gather", counting_gather(held, dist.gather)):
        optimizer.consolidate_state_dict()
    # What rank 0 saves reaches all ranks as a file would: as a copy.
    saved = [copy.deepcopy(optimizer.state_dict()) if rank == 0 else None]
    dist.broadcast_object_list(saved, src=0)
    other_rank_refuses = rank == 0 or refuses(optimizer)
    train(optimizer, named, rank, STEPS, 2 * STEPS)
    twins = {name: nn.Parameter(value.clone()) for name, value in half_way.items()}
    resumed = joined(twins, EXACT)
    resumed.load_state_dict(saved[0])
    train(resumed, twins, rank, STEPS, 2 * STEPS)
    assert_parameters_equal(named.items())
    return {
        "half way": half_way,
        "norm": norm,
        "state": saved[0],
        "end": detached(named),
        "resumed end": detached(twins),
        "held while saving": held,
        "other rank refuses": other_rank_refuses,
        "stale refused": refuses(optimizer),
        "momentum rows": {name: len(optimizer.state[named[name]]["momentum"]) for name in ("qo", "kv", "up", "down")},
    }


def another_rule(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    """AdamW on the banks, whose state is more than a momentum: trains, saves, and goes on from the saved state."""

    def joined(named: dict[str, nn.Parameter]) -> AdamBanks:
        optimizer = AdamBanks(named.items(), UNCLIPPED)
        optimizer.join(dist.group.WORLD)
        return optimizer

    named = parameters()
    optimizer = joined(named)
    train(optimizer, named, rank, 0, STEPS)
    twins = {name: nn.Parameter(value.clone()) for name, value in detached(named).items()}
    optimizer.consolidate_state_dict()
    saved = [copy.deepcopy(optimizer.state_dict()) if rank == 0 else None]
    dist.broadcast_object_list(saved, src=0)
    resumed = joined(twins)
    resumed.load_state_dict(saved[0])
    train(optimizer, named, rank, STEPS, 2 * STEPS)
    train(resumed, twins, rank, STEPS, 2 * STEPS)
    return {"end": detached(named), "resumed end": detached(twins)}


def continue_from(rank: int, path: str) -> dict[str, torch.Tensor]:
    """Goes on from what one process saved."""
    saved = torch.load(path, weights_only=True)
    named = {name: nn.Parameter(saved["weights"][name]) for name in SHAPES}
    optimizer = joined(named, EXACT)
    optimizer.load_state_dict(saved["state"])
    train(optimizer, named, rank, STEPS, 2 * STEPS)
    return detached(named)


def bfloat16(rank: int) -> dict[str, Any]:
    """The default formats, with every collective counted."""
    named = parameters()
    optimizer = joined(named, OptimizerConfig())
    claimed = optimizer.wire_bytes()
    sent: dict[str, list[int]] = {"reduce_scatter": [], "all_reduce": [], "all_gather": []}

    def counting(kind: str, real: Callable[..., Any], position: int) -> Callable[..., Any]:
        def call(*tensors: Any, **settings: Any) -> Any:
            sent[kind].append(tensors[position].nbytes)
            return real(*tensors, **settings)

        return call

    with contextlib.ExitStack() as stack:
        for kind, position, names in COLLECTIVES:
            for name in names:
                if hasattr(dist, name):
                    stack.enter_context(mock.patch.object(dist, name, counting(kind, getattr(dist, name), position)))
        train(optimizer, named, rank, 0, 1)
    train(optimizer, named, rank, 1, STEPS)
    return {"weights": detached(named), "sent": sent, "claimed": claimed}


def exchange(rank: int) -> list[tuple[float, int]]:
    """Both ranks tell their own time; rank 1 gets SIGTERM at step 1, both get one at step 2."""
    named = parameters()
    optimizer = joined(named, EXACT)
    optimizer.exchange.reset(10.0 + rank)
    seen = []
    for step in range(5):
        seen.append(tuple(optimizer.exchange.agreed()))
        signal = {(1, 1): 15, (0, 2): 15, (1, 2): 2}.get((rank, step), 0)
        optimizer.exchange.send(20.0 + step + 100 * rank, signal)
        train(optimizer, named, rank, step, step + 1)
    return seen


def refusals(rank: int) -> dict[str, str]:
    """What is said when ranks differ."""
    said = {"same": "nothing"}
    assert_same_on_all_ranks("the same", "The data")
    try:
        assert_same_on_all_ranks(f"rank {rank}", "The data")
    except GolfError as error:
        said["text"] = str(error)
    named = parameters()
    assert_parameters_equal(named.items())
    if rank == 1:
        # Two equal sums: only the order of the values differs.
        named["mix"].data = named["mix"].data.flip(0)
    try:
        assert_parameters_equal(named.items())
    except GolfError as error:
        said["parameters"] = str(error)
    return said


def everything(rank: int) -> dict[str, Any]:
    return {work.__name__: work(rank) for work in (exact, another_rule, bfloat16, exchange, refusals)}
