"""One tidy line every few steps."""

import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from callbacks.steps import within_step
from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule
from golf_lightning.reporting.console import say


class Console(pl.Callback):
    """Prints step, seconds, loss, tokens per second and learning rate; logs them, momentum, gradient norm, recurrence.

    The loss is rank 0's mean since the last line, summed on the device; the device is asked for it only when a line is
    printed. The loggers get them with the same steps.

    Args:
        every_steps: optimizer steps between two lines.
    """

    def __init__(self, every_steps: int = 50) -> None:
        if every_steps < 1:
            raise GolfError(f"console.every_steps is {every_steps}; choose 1 or more.")
        self.every_steps = every_steps
        self._loss: Tensor | None = None
        self._batches = 0
        self._since = 0.0
        self._all_batches = 0
        self._all_seconds = 0.0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GolfModule)
        loss = outputs["loss"].detach()
        # Lightning hands back the loss divided by the number of accumulated batches.
        loss = loss * trainer.accumulate_grad_batches
        self._loss = loss if self._loss is None else self._loss + loss
        self._batches += 1
        if within_step(trainer):
            return
        step = trainer.global_step
        tokens = step * trainer.accumulate_grad_batches * self._batch_tokens(trainer, pl_module)
        pl_module.result.record("train", steps=step, tokens=tokens)  # whatever ends the run
        # A signal ends the run after this step.
        signal = pl_module.optimizer.exchange.agreed().signal
        if trainer.should_stop or signal or step % self.every_steps == 0:
            self._report(trainer, pl_module)

    def _report(self, trainer: pl.Trainer, module: GolfModule) -> None:
        assert self._loss is not None
        loss = float(self._loss) / self._batches  # waits for the device, so the seconds below are whole
        seconds = time.perf_counter() - self._since
        batch_tokens = self._batch_tokens(trainer, module)
        self._all_seconds += seconds
        self._all_batches += self._batches
        rate = self._batches * batch_tokens / seconds
        muon = next(group for group in module.optimizer.param_groups if group["kind"] == "muon")
        left = f"{module.clock.train_s - module.clock.elapsed():6.1f} s left  " if module.clock is not None else ""
        say(f"step {trainer.global_step:5d}  {left}loss {loss:.4f}  {rate:11,.0f} tokens/s  lr {muon['lr']:.5f}")
        values = {
            "train/loss": loss,
            "train/tokens_per_second": rate,
            "train/lr": muon["lr"],
            "train/momentum": muon["momentum"],
            "train/fraction": module.fraction,
            "train/seconds": self._all_seconds if module.clock is None else module.clock.elapsed(),
            "train/grad_norm": float(module.optimizer.grad_norm),
            "train/recurrent": float(module.model.recurrent),
        }
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        module.result.record(
            "train",
            tokens_per_second=self._all_batches * batch_tokens / self._all_seconds,
            loss=loss,
        )
        if module.device.type == "cuda":
            module.result.record("train", peak_memory_bytes=torch.cuda.max_memory_allocated())
        self._begin()

    def _batch_tokens(self, trainer: pl.Trainer, module: GolfModule) -> int:
        return module.datamodule.train_packing.tokens * trainer.world_size

    def _begin(self) -> None:
        self._loss, self._batches, self._since = None, 0, time.perf_counter()
