"""Trains with AdamW on the banks instead of Muon, for the ablation; any command of golf_lightning.

    python tests/benchmarks/adam_banks.py fit --config configs/golf.yaml --model.optimizer.muon_lr 0.002

``muon_lr`` is then AdamW's rate for the banks; the decays of its moments are those of the other parameters.
"""

import math

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import override

from golf_lightning.__main__ import end_process, main
from golf_lightning.module import GolfModule
from golf_lightning.optim.muon import MuonAdamW


class AdamBanks(MuonAdamW):
    """AdamW for everything (Loshchilov and Hutter, 2017, arXiv:1711.05101)."""

    @override
    def bank_update(self, bank: nn.Parameter, gradient_SRC: Tensor) -> Tensor:
        state = self.state[bank]
        if not state:
            state |= {name: gradient_SRC.new_zeros(gradient_SRC.shape) for name in ("first", "second", "count")}
        beta1, beta2 = self.config.beta1, self.config.beta2
        state["count"] += 1
        state["first"].lerp_(gradient_SRC, 1 - beta1)
        state["second"].lerp_(gradient_SRC.square(), 1 - beta2)
        first_SRC = state["first"] / (1 - beta1 ** state["count"])
        second_SRC = state["second"] / (1 - beta2 ** state["count"])
        rows, columns = bank.shape[-2:]
        return first_SRC / (second_SRC.sqrt() + self.config.eps) / math.sqrt(max(1.0, rows / columns))


class AdamModule(GolfModule):
    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return AdamBanks(self.model.named_parameters(), self.optimizer_config)


if __name__ == "__main__":
    end_process(main(module_class=AdamModule))
