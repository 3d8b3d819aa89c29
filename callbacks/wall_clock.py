"""Ends training in time."""

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from callbacks.steps import within_step
from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule
from golf_lightning.optim.clock import TrainingClock
from golf_lightning.optim.exchange import LAG


class WallClock(pl.Callback):
    """Stops training when its budget is used, leaving a reserve for the export.

    The clock starts with the first step, after compile warm-up, and stands during validation. All ranks act on rank 0's
    seconds, which travel with the gradients and are two steps old when they are read; the stop allows for that. Without
    a budget, training ends at the Trainer's ``max_steps`` and schedules follow steps.

    Args:
        budget_s: training budget in seconds, or null for none.
        reserve_s: seconds of the budget kept for collecting Hessians; training and its schedules end before them.

    Raises:
        GolfError: there is neither a budget nor ``max_steps``, or the reserve is not less than the budget.
    """

    def __init__(self, budget_s: float | None = 600.0, reserve_s: float = 13.0) -> None:
        self.clock = None if budget_s is None else TrainingClock(budget_s, reserve_s)
        self._last_s = 0.0
        self._step_s = 0.0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.clock is None and trainer.max_steps <= 0:
            raise GolfError("Training would never end; set --clock.budget_s (seconds) or --trainer.max_steps.")
        assert isinstance(pl_module, GolfModule)
        pl_module.clock = self.clock

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.clock is not None:
            self._last_s = self.clock.elapsed()
            if self._last_s >= self.clock.train_s:  # a finished run, resumed to repeat what follows training
                trainer.should_stop = True
            self.clock.resume()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GolfModule)
        if within_step(trainer):
            return
        # Ending through should_stop, also at max_steps, makes Lightning validate once more before it leaves.
        if 0 < trainer.max_steps <= trainer.global_step or (self.clock is not None and self._late(pl_module)):
            trainer.should_stop = True

    def _late(self, module: GolfModule) -> bool:
        assert self.clock is not None
        agreed_s = module.optimizer.exchange.agreed().elapsed_s
        # A rising mean of the steps' seconds: one slow step must not end the run early.
        self._step_s = 0.8 * self._step_s + 0.2 * (agreed_s - self._last_s) if self._step_s else agreed_s - self._last_s
        self._last_s = agreed_s
        steps_behind = 2 * LAG + 1 if module.device.type == "cuda" else LAG + 1
        return agreed_s + steps_behind * self._step_s > self.clock.train_s

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.clock is not None:
            self.clock.pause()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.clock is not None and not trainer.should_stop and trainer.state.fn == "fit":
            self.clock.resume()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.clock is not None:
            self.clock.pause()

    @override
    def state_dict(self) -> dict[str, float]:
        return {} if self.clock is None else self.clock.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        if self.clock is not None and state_dict:
            self.clock.load_state_dict(state_dict)
