"""A training step in Lightning against the same step in a bare loop, at the demo's size, in one process.

usage: python tests/benchmarks/lightning_overhead.py DATA_FOLDER [--config configs/demo.yaml] [--steps 60] [--rounds 3]

Both run the same compiled or uncompiled model on the same batches with the same optimizer and average. Rounds
alternate, so that a busy machine slows both. Prints the median step of each and their ratio, and the same as JSON.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from callbacks.ema import EMA
from golf_lightning.__main__ import named_callbacks, quiet
from golf_lightning.cli import GolfCLI
from golf_lightning.data.batch import IGNORED
from golf_lightning.optim.muon import MuonAdamW
from golf_lightning.optim.schedules import scheduled


class Stopwatch(pl.Callback):
    """Times from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    @override
    def on_train_batch_end(self, *arguments: Any) -> None:
        self.ends.append(time.perf_counter())

    def steps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.ends, self.ends[1:], strict=False)]


class Built(GolfCLI):
    """The parts of a run, not yet run."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


def build(arguments: argparse.Namespace) -> Built:
    quiet()
    options = ["--config", arguments.config, "--data.folder", arguments.folder, "--clock.budget_s", "null"]
    options += ["--trainer.max_steps", str(arguments.steps), "--trainer.limit_val_batches", "0"]
    options += ["--gptq.at_train_end", "false", "--ttt.enabled", "false", "--run.root", arguments.root]
    options += ["--recurrence.start", "1", "--console.every_steps", "1000000", "--run.overwrite", "true"]
    return Built(named_callbacks(), ["fit", *options])


def in_lightning(arguments: argparse.Namespace) -> list[float]:
    parts, watch = build(arguments), Stopwatch()
    parts.trainer.callbacks.append(watch)
    parts.trainer.fit(parts.model, parts.datamodule)
    return watch.steps()


def bare(arguments: argparse.Namespace) -> list[float]:
    parts = build(arguments)
    model, config = parts.model.model, parts.model.optimizer_config
    optimizer = MuonAdamW(model.named_parameters(), config)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    decay_at = EMA().decay_at
    batches = iter(parts.datamodule.train_dataloader())
    ends = []
    for step in range(arguments.steps):
        batch = next(batches)
        loss = model(batch.tokens, batch.targets, batch.cu_seqlens).sum() / (batch.targets != IGNORED).sum()
        loss.backward()
        optimizer.set_schedule(*scheduled(config, step, step / arguments.steps))
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1 - decay_at(step))
        ends.append(time.perf_counter())
    return [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Lightning's step against a bare loop's.")
    parser.add_argument("folder", help="prepared data folder")
    parser.add_argument("--config", default="configs/demo.yaml", help="recipe")
    parser.add_argument("--steps", type=int, default=60, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind")
    parser.add_argument("--root", default="runs/benchmarks", help="folder for what the run writes")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    lightning, loop = [], []
    for _ in range(arguments.rounds):
        loop += bare(arguments)[5:]
        lightning += in_lightning(arguments)[5:]
    figures = {"lightning_ms": 1e3 * statistics.median(lightning), "bare_ms": 1e3 * statistics.median(loop)}
    figures["ratio"] = figures["lightning_ms"] / figures["bare_ms"]
    print(
        f"step in Lightning {figures['lightning_ms']:.2f} ms, bare {figures['bare_ms']:.2f} ms: {figures['ratio']:.3f}"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
