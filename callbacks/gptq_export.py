"""Writes the artifact when training is over."""

from collections.abc import Callable

import lightning.pytorch as pl
from typing_extensions import override

from callbacks.ema import EMA
from callbacks.order import require_before
from callbacks.run_folder import RunFolder
from golf_lightning.cli import GolfTrainer
from golf_lightning.compression.budget import ByteBudget
from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule
from golf_lightning.reporting.console import say
from golf_lightning.reporting.run_folder import artifact_path
from golf_lightning.stages import export_and_score, measure_code


class GPTQExport(pl.Callback):
    """Quantizes the averaged weights with GPTQ, writes ``artifact.golf`` and scores what was read back from it.

    Settings are the module's ``export``. Being over budget ends the run with an error, after everything is written and
    scored.

    Args:
        at_train_end: whether ``fit`` exports when training ends; the subcommand ``export`` does in any case.
    """

    def __init__(self, at_train_end: bool = True) -> None:
        self.at_train_end = at_train_end
        self._budget: ByteBudget | None = None
        self._measured: Callable[[bool], None] = lambda wait: None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require_before(trainer, self, RunFolder, EMA)  # they end the training stage and swap the average in
        assert isinstance(pl_module, GolfModule)
        runs = [callback for callback in trainer.callbacks if isinstance(callback, RunFolder)]  # type: ignore[attr-defined]
        if self._exports(trainer, stage) and runs and runs[0].config:
            # Before training: what cannot be measured must not end a run that has trained.
            self._measured = measure_code(pl_module, runs[0].config)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measured(False)  # what failed while everything was compiled ends the run now, not after training

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        if pl_module.is_artifact and self._exports(trainer, "validate"):
            raise GolfError("An artifact is quantized already; give export the checkpoint that it was made from.")

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.at_train_end:
            self._export(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._exports(trainer, "validate"):
            self._export(trainer, pl_module)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._budget is not None:
            self._budget.require()

    def _exports(self, trainer: pl.Trainer, stage: str) -> bool:
        if stage == "fit":
            return self.at_train_end
        return isinstance(trainer, GolfTrainer) and trainer.exporting

    def _export(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        self._measured(True)
        self._budget = export_and_score(pl_module, artifact_path(trainer))
        over = -self._budget.headroom_bytes
        say(f"wrote {artifact_path(trainer)}: {self._budget.artifact_bytes:,} bytes")
        if over > 0:
            say(f"warning: {over:,} bytes over the limit; scoring goes on, then the run ends with an error")
