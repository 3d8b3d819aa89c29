"""Fifty steps of a small GPT with the same global batches, shared by any number of ranks; importable by processes."""

from typing import Any

import torch
import torch.distributed as dist

from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.agreement import assert_parameters_equal
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.muon import MuonAdamW
from golf_lightning.optim.schedules import scheduled

STEPS, MICRO_BATCHES, TOKENS = 50, 4, 96

GPT_CONFIG = GPTConfig(
    vocab_size=48, layers=4, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=32, rope_dims=4, max_seqlen=32,
    loop_first=1, loop_last=1, lanes_start=2,
)  # fmt: skip

FORMATS = {
    "exact": OptimizerConfig(communication_dtype="float32", newton_schulz_dtype="float64"),
    "default": OptimizerConfig(),
}


def micro_batch(index: int) -> torch.Tensor:
    """Tokens that count up with random strides, so that there is something to learn: ``[TOKENS + 1]``."""
    generator = torch.Generator().manual_seed(index)
    steps = 1 + torch.randint(0, 3, (TOKENS + 1,), generator=generator)
    return steps.cumsum(0) % GPT_CONFIG.vocab_size


def curve(config: OptimizerConfig, rank: int, world_size: int, compute_dtype: torch.dtype) -> dict[str, Any]:
    """The losses of this rank's micro-batches, in order, and the weights at the end."""
    torch.manual_seed(0)
    model = GPT(GPT_CONFIG, compute_dtype=compute_dtype)
    optimizer = MuonAdamW(model.named_parameters(), config)
    if world_size > 1:
        optimizer.join(dist.group.WORLD)
    cu_seqlens = torch.arange(0, TOKENS + 1, GPT_CONFIG.max_seqlen, dtype=torch.int32)
    losses = []
    for step in range(STEPS):
        model.recurrent = step >= STEPS // 3
        for micro in range(rank, MICRO_BATCHES, world_size):
            tokens = micro_batch(step * MICRO_BATCHES + micro)
            loss = model(tokens[:-1], tokens[1:], cu_seqlens).mean()
            (loss * world_size / MICRO_BATCHES).backward()
            losses.append(float(loss.detach()))
        optimizer.set_schedule(*scheduled(config, step, step / STEPS))
        optimizer.step()
    assert_parameters_equal(model.named_parameters())
    return {"losses": losses, "weights": {name: p.detach() for name, p in model.named_parameters()}}


def exact(rank: int, world_size: int) -> dict[str, Any]:
    """The test setting in which only the order of sums differs between numbers of ranks."""
    return curve(FORMATS["exact"], rank, world_size, torch.float64)


def default(rank: int, world_size: int) -> dict[str, Any]:
    """The formats of a real run, where gradients and updates travel in bfloat16."""
    return curve(FORMATS["default"], rank, world_size, torch.float32)


def on_two(rank: int) -> dict[str, Any]:
    return {"exact": exact(rank, 2), "default": default(rank, 2)}


def on_four(rank: int) -> dict[str, Any]:
    return {"exact": exact(rank, 4)}
