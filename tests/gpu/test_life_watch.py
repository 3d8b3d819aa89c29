"""What a rank's own thread does while its GPU's backward pass runs."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from life_work import PATIENCE_S, spin

from golf_lightning.optim.life_watch import LifeWatch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class SlowBackward(torch.autograd.Function):
    """Computes for three times the patience on its way back, as a backward pass does that compiles."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        spin(3 * PATIENCE_S)
        return gradient


def test_a_long_backward_pass_is_no_hang() -> None:
    ended: list[str] = []
    watch = LifeWatch(0, 1, dist.HashStore(), PATIENCE_S, end=ended.append)
    watch.start()
    x = torch.ones((), device="cuda", requires_grad=True)
    SlowBackward.apply(x).backward()
    watch.close()
    assert not ended
    assert x.grad == 1
