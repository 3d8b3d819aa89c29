"""Saves the run."""

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from callbacks.ema import EMA
from callbacks.order import require_before
from callbacks.rank_watch import RankWatch
from callbacks.steps import within_step
from callbacks.wall_clock import WallClock
from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule
from golf_lightning.reporting.run_folder import last_checkpoint


class Checkpoints(pl.Callback):
    """Writes ``checkpoints/last.ckpt`` in the run folder when training ends, and every so many steps if asked.

    The last one is saved before validation and export begin, so nothing that goes wrong there loses the training.

    Args:
        every_steps: optimizer steps between checkpoints; 0 saves only at the end. The training clock runs meanwhile.
    """

    def __init__(self, every_steps: int = 0) -> None:
        if every_steps < 0:
            raise GolfError(f"checkpoints.every_steps is {every_steps}; choose 0 or more.")
        self.every_steps = every_steps

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # What is saved must include the step just done, and the clock's decision to stop, and have passed the check.
        require_before(trainer, self, WallClock, EMA, RankWatch)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GolfModule)
        if within_step(trainer):
            return
        due = self.every_steps > 0 and trainer.global_step % self.every_steps == 0
        if due or trainer.should_stop:
            trainer.save_checkpoint(last_checkpoint(trainer))
