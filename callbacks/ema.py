"""Averages the weights over training."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from callbacks.steps import within_step
from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule


class EMA(pl.Callback):
    """Keeps an exponential moving average of all parameters; validation and the export see it.

    The average looks back over ``1 / (1 - decay)`` steps, but never over more than ``window`` of the steps done so far:
    at step t the decay is ``min(decay, 1 - 1 / (1 + window * t))``. A run as long as the record's ends with the
    record's decay; a run of 200 steps averages over its last 15 instead of over its whole descent.

    Args:
        decay: decay per step of a long run, 0 to below 1.
        window: longest memory as a fraction of the steps done; 0.07 is 333 of the record's 4,820 steps.
        enabled: whether to average at all.
    """

    def __init__(self, decay: float = 0.9965, window: float = 0.07, enabled: bool = True) -> None:
        if not 0 <= decay < 1:
            raise GolfError(f"ema.decay is {decay}; choose 0 or more and less than 1.")
        if window <= 0:
            raise GolfError(f"ema.window is {window}; choose a fraction above 0.")
        self.decay = decay
        self.window = window
        self.enabled = enabled
        self.steps = 0
        self.average: dict[str, Tensor] = {}
        self._raw: list[Tensor] | None = None

    def decay_at(self, step: int) -> float:
        """Decay of the update after ``step`` earlier ones."""
        return min(self.decay, 1 - 1 / (1 + self.window * step))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parameters = self._parameters(pl_module)
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in parameters.items()}
        self.average = {name: average.to(parameters[name].device) for name, average in self.average.items()}

    @override
    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if within_step(trainer):
            return
        parameters = self._parameters(pl_module)
        weight = 1 - self.decay_at(self.steps)
        torch._foreach_lerp_(list(self.average.values()), [parameters[name] for name in self.average], weight)
        self.steps += 1

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap_in(pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":  # elsewhere nothing trains on, and an export wants the average
            self._swap_out(pl_module)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap_in(pl_module)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._swap_out(pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "average": self.average}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]
        self.average = state_dict["average"]

    def _parameters(self, pl_module: pl.LightningModule) -> dict[str, Tensor]:
        assert isinstance(pl_module, GolfModule)
        return dict(pl_module.model.named_parameters())

    @torch.no_grad()
    def _swap_in(self, pl_module: pl.LightningModule) -> None:
        parameters = self._parameters(pl_module)
        if self._raw is None and self.steps:
            targets = [parameters[name] for name in self.average]
            self._raw = [p.detach().clone() for p in targets]
            torch._foreach_copy_(targets, [average.to(targets[0].device) for average in self.average.values()])

    @torch.no_grad()
    def _swap_out(self, pl_module: pl.LightningModule) -> None:
        if self._raw is not None:
            parameters = self._parameters(pl_module)
            torch._foreach_copy_([parameters[name] for name in self.average], self._raw)
            self._raw = None
