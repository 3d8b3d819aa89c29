"""Watches over the ranks of a run."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from torch.distributed.distributed_c10d import Store, _get_default_store
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.ema import EMA
from callbacks.order import require_before
from callbacks.steps import within_step
from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule
from golf_lightning.optim.agreement import assert_parameters_equal
from golf_lightning.optim.step_watch import StepWatch

if TYPE_CHECKING:
    from golf_lightning.optim.life_watch import LifeWatch

# By name, so that a bundled program, whose every byte counts, does not carry it.
LIFE_WATCH = "golf_lightning.optim.life_watch"


class RankWatch(pl.Callback):
    """Ends a run of several ranks when one of them hangs, and compares their parameters on request.

    Does nothing on one rank. In training each step is watched, see
    :class:`~golf_lightning.optim.step_watch.StepWatch`. In all stages ranks that no longer run, and ranks that sleep
    without a reason, are found, see :class:`~golf_lightning.optim.life_watch.LifeWatch`; a bundled program goes
    without. What neither sees, endless work outside of training steps and ranks that never joined the others, the
    strategy's ``timeout_s`` ends.

    Args:
        timeout_s: seconds that a micro-batch and its step may take, and that a rank may sleep, before the run ends with
            an error; a rank that does not answer gets twice as long. 0 never ends the run. Choose more where steps
            compile, which they do without warm-up, and 0 for a debugger.
        check_every_steps: optimizer steps between two checks that all parameters are bit-equal on all ranks; the
            averaged ones are checked at the end of training. 0 checks nothing. A check waits for the device and sends
            16 bytes a parameter tensor.
    """

    def __init__(self, timeout_s: float = 25.0, check_every_steps: int = 0) -> None:
        if not 0 <= timeout_s < float("inf"):
            raise GolfError(f"ranks.timeout_s is {timeout_s}; choose seconds above 0, or 0 for no limit.")
        if check_every_steps < 0:
            raise GolfError(f"ranks.check_every_steps is {check_every_steps}; choose 0 or more.")
        self.timeout_s = timeout_s
        self.check_every_steps = check_every_steps
        self._watch: StepWatch | None = None
        self._life: LifeWatch | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require_before(trainer, self, EMA)  # at the end of training it checks the average
        if trainer.world_size > 1 and self.timeout_s > 0 and importlib.util.find_spec(LIFE_WATCH) is not None:
            life_watch = importlib.import_module(LIFE_WATCH).LifeWatch
            self._life = life_watch(trainer.global_rank, trainer.world_size, own_store(), self.timeout_s)
            self._life.start()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1 and self.timeout_s > 0:
            self._watch = StepWatch(trainer.global_rank, trainer.world_size, own_store(), self.timeout_s)
            self._watch.start()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._progress()

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self._progress()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if within_step(trainer):
            return
        if self.check_every_steps > 0 and trainer.global_step % self.check_every_steps == 0:
            assert isinstance(pl_module, GolfModule)
            assert_parameters_equal(pl_module.model.named_parameters())
        self._progress()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause()

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._pause()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close_watch()
        if self.check_every_steps > 0:
            assert isinstance(pl_module, GolfModule)
            assert_parameters_equal(pl_module.model.named_parameters())

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close_life()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close_watch()
        self._close_life()

    def _progress(self) -> None:
        if self._watch is not None:
            self._watch.progress()

    def _pause(self) -> None:
        if self._watch is not None:
            self._watch.pause()

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _close_life(self) -> None:
        if self._life is not None:
            self._life.close()
            self._life = None


def own_store() -> Store:
    """A connection of one's own to the process group's store."""
    return _get_default_store().clone()  # type: ignore[attr-defined]
