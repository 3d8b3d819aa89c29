"""Ranks whose clocks run differently, and a callback that notes what each of them does.

A program's arguments are FOLDER and those of golf_lightning.

The clock of rank r runs 1 + r times as fast as it should. What rank r does goes to FOLDER/r.json.
"""

import json
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from golf_lightning.__main__ import main
from golf_lightning.optim.clock import TrainingClock


class RankLog(pl.Callback):
    """Notes step, learning rate, momentum and recurrence of each step.

    Args:
        folder: where the file goes, when training ends.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.steps: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *arguments: Any) -> None:
        muon = next(group for group in pl_module.optimizer.param_groups if group["kind"] == "muon")
        self.steps.append((trainer.global_step, muon["lr"], muon["momentum"], pl_module.model.recurrent))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        seen = {"steps": self.steps, "clock_s": pl_module.clock.elapsed()}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(seen))


def skew_clock() -> None:
    elapsed, factor = TrainingClock.elapsed, 1 + int(os.environ.get("LOCAL_RANK", "0"))
    TrainingClock.elapsed = lambda clock: factor * elapsed(clock)  # type: ignore[method-assign]


def run(arguments: list[str]) -> int:
    skew_clock()
    folder, *others = arguments
    callback = ["--trainer.callbacks+=rank_log.RankLog", f"--trainer.callbacks.folder={folder}"]
    return main([*others, *callback])
