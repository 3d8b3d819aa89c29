"""Compiles before the training clock starts."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from typing_extensions import override

from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule
from golf_lightning.optim.warmup import keep_compiled_code, process_seconds, random_batch, warm_up
from golf_lightning.reporting.console import say


class CompileWarmup(pl.Callback):
    """Runs a training step on random tokens for each order of layers, then restores everything it touched.

    Weights, recurrence, optimizer momentum and random generators are as before, so a run with warm-up equals one
    without. The wall clock starts afterwards.

    Args:
        enabled: whether to warm up; without compilation it only warms caches.
        cache_folder: where compiled code is kept for later runs and other machines of the same kind; null leaves it
            where torch, Triton, FlashAttention and quack-kernels keep it, or where their environment variables say.

    Raises:
        GolfError: a micro-batch does not fit in the GPU's memory.
    """

    def __init__(self, enabled: bool = True, cache_folder: str | None = None) -> None:
        self.enabled = enabled
        self.cache_folder = cache_folder

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.cache_folder is not None:
            keep_compiled_code(Path(self.cache_folder))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        data, model = pl_module.datamodule, pl_module.model
        shape = next(data.calibration_batches(1))
        batch = random_batch(shape, model.config.vocab_size).to(pl_module.device)
        recurrence = [True] if model.recurrent else [False, True] if model.config.loop_passes > 1 else [False]
        try:
            with pl_module.ledger.stage("compile"):
                warm_up(model, pl_module.optimizer, batch, recurrence=recurrence)
        except torch.OutOfMemoryError as error:
            raise GolfError(
                f"A micro-batch of {data.train_packing.tokens:,} tokens does not fit in the GPU's memory; halve "
                "--data.train_tokens and double --trainer.accumulate_grad_batches, which keeps the global batch."
            ) from error
        since = process_seconds()
        age = "" if since is None else f", {since:.1f} s after the process began"
        say(f"warmed up in {pl_module.ledger.seconds['compile']:.1f} s{age}; the training clock starts now")
