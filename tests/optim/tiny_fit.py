"""A small fit with MuonStrategy, run as a program on one or more processes.

Step s of every run sees the batches 4 s to 4 s + 3: four micro-batches of one process, two on each of two, or one on
each of four.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from ranks import EXACT
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from golf_lightning.__main__ import end_process
from golf_lightning.optim.agreement import assert_parameters_equal
from golf_lightning.optim.muon import MuonAdamW
from golf_lightning.optim.schedules import scheduled
from golf_lightning.optim.strategy import MuonStrategy

BATCHES = 4
"""Micro-batches of a step, on all ranks together."""

COLLECTIVES = [
    name
    for name in ("all_reduce", "broadcast", "barrier", "all_gather", "broadcast_object_list", "all_gather_object")
    + ("reduce_scatter_tensor", "reduce_scatter_single", "all_gather_into_tensor", "all_gather_single")
    if hasattr(dist, name)
]


class Batches(IterableDataset):
    def __init__(self, first: int, rank: int, world_size: int) -> None:
        self.first, self.rank, self.world_size = first, rank, world_size

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(self.first + self.rank, 10_000, self.world_size):
            yield torch.randn(16, 12, generator=torch.Generator().manual_seed(index))


class Tiny(pl.LightningModule):
    def __init__(self, max_steps: int, first: int) -> None:
        super().__init__()
        self.max_steps, self.first = max_steps, first
        self.losses: list[float] = []
        self.calls: dict[str, int] = {}
        # Ranks start apart: rank 0's values must reach all.
        generator = torch.Generator().manual_seed(int(torch.initial_seed()))
        for name, shape in {"qo": (3, 12, 12), "up": (3, 24, 12), "down": (3, 12, 24), "mix": (3, 12)}.items():
            self.register_parameter(name, nn.Parameter(0.3 * torch.randn(shape, generator=generator)))
        self.register_buffer("target", torch.randn(12, generator=generator))

    @override
    def training_step(self, x_BD: Tensor, batch_idx: int) -> Tensor:
        y_BD = x_BD
        for qo, up, down, mix in zip(self.qo, self.up, self.down, self.mix, strict=True):
            y_BD = mix * y_BD + torch.tanh(y_BD @ qo.T @ up.T) @ down.T
        loss = (y_BD - torch.roll(x_BD, 1, dims=1) - self.target).square().mean()
        self.losses.append(loss.item())
        return loss

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.set_schedule(*scheduled(EXACT, self.global_step, self.global_step / self.max_steps))

    @override
    def configure_optimizers(self) -> MuonAdamW:
        return MuonAdamW(self.named_parameters(), EXACT)

    @override
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Batches(self.first, self.trainer.global_rank, self.trainer.world_size), batch_size=None)


class CountCollectives(pl.Callback):
    """Counts every collective of steps 2 to 4."""

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Tiny, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2 and not pl_module.calls and not hasattr(dist.all_reduce, "real"):
            for name in COLLECTIVES:
                setattr(dist, name, self.counting(name, getattr(dist, name), pl_module.calls))

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Tiny, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 5:
            for name in COLLECTIVES:
                # A run that continues after step 2 counts nothing.
                setattr(dist, name, getattr(getattr(dist, name), "real", getattr(dist, name)))

    @staticmethod
    def counting(name: str, real: Callable[..., Any], calls: dict[str, int]) -> Callable[..., Any]:
        def call(*values: Any, **settings: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return real(*values, **settings)

        call.real = real  # type: ignore[attr-defined]
        return call


class RaiseOn(pl.Callback):
    def __init__(self, rank: int) -> None:
        self.rank = rank

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Tiny, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2 and trainer.global_rank == self.rank:
            raise RuntimeError(f"rank {self.rank} fell over")


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--schedule-steps", type=int, default=6)
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--raise-on", type=int)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    callbacks: list[pl.Callback] = [CountCollectives()]
    if options.raise_on is not None:
        callbacks.append(RaiseOn(options.raise_on))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=options.devices,
        strategy=MuonStrategy(),
        max_steps=options.steps,
        accumulate_grad_batches=BATCHES // options.devices,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    torch.manual_seed(trainer.global_rank)
    done = torch.load(options.ckpt, weights_only=False)["global_step"] if options.ckpt else 0
    module = Tiny(options.schedule_steps, first=BATCHES * done)
    trainer.fit(module, ckpt_path=options.ckpt, weights_only=False)
    trainer.save_checkpoint(options.out / "end.ckpt")
    assert_parameters_equal(module.named_parameters())
    result = {
        "losses": module.losses,
        "calls": module.calls,
        "world": trainer.world_size,
        "type": type(trainer.model).__name__,
    }
    (options.out / f"{trainer.global_rank}.json").write_text(json.dumps(result))
    torch.save(module.state_dict(), options.out / f"{trainer.global_rank}.pt")
    # The other ranks end with rank 0, which must not end before they have written.
    trainer.strategy.barrier()
    return 0


if __name__ == "__main__":
    end_process(run(sys.argv[1:]))
