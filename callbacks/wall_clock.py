"""Ends training in time."""

import statistics
from collections import deque
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from callbacks.steps import within_step
from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule
from golf_lightning.optim.clock import TrainingClock
from golf_lightning.optim.exchange import LAG

SPARE_STEPS = 0.25
"""Part of a step kept free at the end, since steps differ in length."""

MEMORY = 9
"""Steps of which the median tells how long the next ones take."""


class WallClock(pl.Callback):
    """Stops training when its budget is used, leaving a reserve for the export.

    The clock starts with the first step, after compile warm-up, and stands during validation. All ranks act on the
    second at which rank 0 began a step. It travels with that step's gradients and is read after the next one is
    launched, so on a CPU it is 3 steps before the end of the step to be decided on. On a GPU it is 4: the host begins a
    step when the device has done all but the last one launched. Training stops when that many steps of the median
    length, and a quarter of one, do not fit any more; schedules count the same steps on top of the agreed second.
    Without a budget, training ends at the Trainer's ``max_steps`` and schedules follow steps.

    Args:
        budget_s: training budget in seconds, or null for none.
        reserve_s: seconds of the budget kept for collecting Hessians; training and its schedules end before them.

    Raises:
        GolfError: there is neither a budget nor ``max_steps``, or the reserve is not less than the budget.
    """

    def __init__(self, budget_s: float | None = 600.0, reserve_s: float = 13.0) -> None:
        self.clock = None if budget_s is None else TrainingClock(budget_s, reserve_s)
        self._last_s: float | None = None
        self._steps_s: deque[float] = deque(maxlen=MEMORY)

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
        assert isinstance(pl_module, GolfModule)
        self._last_s = None
        self._steps_s.clear()
        if self.clock is not None:
            pl_module.step_start_s = self.clock.elapsed()
            if pl_module.step_start_s >= self.clock.train_s:  # a finished run, resumed to repeat what follows training
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
        if self.clock is not None:
            pl_module.step_start_s = self.clock.elapsed()

    def _late(self, module: GolfModule) -> bool:
        """Whether the next step would end too late, and how old the agreed time is when it begins.

        Every rank comes to the same results: only agreed times count.
        """
        assert self.clock is not None
        agreed_s = module.optimizer.exchange.agreed().elapsed_s
        if self._last_s is not None and agreed_s > self._last_s:
            self._steps_s.append(agreed_s - self._last_s)
        self._last_s = agreed_s
        if not self._steps_s:
            return False
        step_s = statistics.median(self._steps_s)
        module.lag_s = (LAG + (1 if module.device.type == "cuda" else 0)) * step_s
        return agreed_s + module.lag_s + (1 + SPARE_STEPS) * step_s > self.clock.train_s

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
