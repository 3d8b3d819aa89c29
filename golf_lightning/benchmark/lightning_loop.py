"""The same training step inside Lightning, with the recipe's callbacks, for comparison with the bare one."""

import tempfile
import time
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from callbacks.steps import within_step
from golf_lightning.__main__ import named_callbacks, quiet
from golf_lightning.cli import GolfCLI

SKIPPED = 5
"""Steps before the timed ones: the first wait for caches and for the loader."""


class BuiltRun(GolfCLI):
    """The parts of a run as ``fit`` would build them, not yet run."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


def build_run(options: list[str]) -> BuiltRun:
    """Build module, data and trainer from options of ``fit``."""
    quiet()
    return BuiltRun(named_callbacks(), ["fit", *options])


def lightning_ms_per_step(options: list[str], *, steps: int, recurrent: bool) -> float:
    """Mean milliseconds of a step of ``fit`` over ``steps`` steps, data loading and callbacks included.

    Args:
        options: of ``fit``; clock, export and scoring are switched off here.
        steps: timed, after :data:`SKIPPED` others.
        recurrent: whether depth recurrence is on.
    """
    with tempfile.TemporaryDirectory() as root:
        run = build_run(
            [
                *options,
                *("--run.root", root, "--clock.budget_s", "null", "--trainer.max_steps", str(SKIPPED + steps + 1)),
                *("--trainer.limit_val_batches", "0", "--gptq.at_train_end", "false", "--ttt.enabled", "false"),
                *("--recurrence.start", "0" if recurrent else "1", "--console.every_steps", "1000000"),
            ]
        )
        watch = _Stopwatch(steps)
        run.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        run.trainer.fit(run.model, run.datamodule)
    return watch.milliseconds


class _Stopwatch(pl.Callback):
    """Times the last ``steps`` steps from end to end; waits for the device at the first and the last."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.milliseconds = 0.0
        self._started = 0.0

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if within_step(trainer) or trainer.global_step not in (SKIPPED, SKIPPED + self.steps):
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.milliseconds = 1e3 * (now - self._started) / self.steps
        self._started = now
