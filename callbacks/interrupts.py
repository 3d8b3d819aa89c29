"""Ctrl-C and SIGTERM end a run at a step boundary, saved and resumable."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from callbacks.ema import EMA
from callbacks.order import require_before
from callbacks.steps import within_step
from golf_lightning.errors import Interrupted
from golf_lightning.module import GolfModule
from golf_lightning.reporting.console import say
from golf_lightning.reporting.run_folder import last_checkpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts(pl.Callback):
    """Turns SIGINT and SIGTERM into a saved checkpoint and the exit status 130 or 143.

    During training the signal only sets a flag. The flag travels with the gradients, so all ranks save and stop after
    the same step, two steps later. Outside training, and at a second signal, the run stops where it is: what was saved
    before (the checkpoint at the end of training, the artifact) stays.
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._module: GolfModule | None = None
        self._training = False

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require_before(trainer, self, EMA)  # the checkpoint must hold the average of the step just done
        assert isinstance(pl_module, GolfModule)
        self._module = pl_module
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._give_back()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._give_back()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = True

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GolfModule)
        if within_step(trainer):
            return
        if number := pl_module.optimizer.exchange.agreed().signal:
            path = last_checkpoint(trainer)
            trainer.save_checkpoint(path)
            say(f"saved {path}; continue with --ckpt_path {path}")
            raise Interrupted(number)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave_training()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = trainer.state.fn == "fit" and not trainer.should_stop

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave_training()

    def _leave_training(self) -> None:
        self._training = False
        if self._module is not None and self._module.signal:  # came with the last steps, after which nobody asks
            raise Interrupted(self._module.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        assert self._module is not None
        if not self._training or self._module.signal:
            raise Interrupted(number)
        self._module.signal = number
        line = f"{signal.Signals(number).name}: saving after this step; send it again to stop at once"
        # From a thread, since the signal may have come in the middle of a line, which no handler may write into.
        threading.Thread(target=say, args=(line,)).start()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
