"""Switches depth recurrence on."""

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule


class RecurrenceSwitch(pl.Callback):
    """Runs the looped layers ``gpt.loop_passes`` times from a fraction of the training clock on.

    The model's plan gives every skip its pair of layers in both orders, so what skips have learned stays theirs.

    Args:
        start: fraction of the training clock (or of ``max_steps``) at which recurrence begins; 0 is the first step,
            1 is never.
    """

    def __init__(self, start: float = 0.35) -> None:
        if not 0 <= start <= 1:
            raise GolfError(f"recurrence.start is {start}; choose a fraction of the training clock from 0 to 1.")
        self.start = start

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GolfModule)
        model = pl_module.model
        if not model.recurrent and model.config.loop_passes > 1 and self.start < 1 and pl_module.fraction >= self.start:
            model.recurrent = True
            pl_module.result.record("train", recurrent_from_step=trainer.global_step)
