"""The optimizer on a GPU, where a host that waits for the device would cost the run its speed."""

from collections.abc import Iterator

import pytest
import torch
from ranks import SHAPES, gradients, parameters
from torch import nn

from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.exchange import LAG
from golf_lightning.optim.muon import MuonAdamW

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def no_sync() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_cuda(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in values.items()}


def train(config: OptimizerConfig, cuda: bool) -> dict[str, torch.Tensor]:
    named = {name: nn.Parameter(p.data.cuda() if cuda else p.data) for name, p in parameters().items()}
    optimizer = MuonAdamW(named.items(), config)
    for step in range(3):
        for name, value in gradients(step, 0).items():
            named[name].grad = value.cuda() if cuda else value
        optimizer.step()
    return {name: parameter.detach().cpu() for name, parameter in named.items()}


def test_the_same_numbers_as_on_the_cpu() -> None:
    config = OptimizerConfig(newton_schulz_dtype="float64")
    expected = train(config, cuda=False)
    for name, value in train(config, cuda=True).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


# torch warns that this mode does not know every operation that waits.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.usefixtures("no_sync")
def test_a_step_never_waits_for_the_device() -> None:
    named = {name: nn.Parameter(parameter.data.cuda()) for name, parameter in parameters().items()}
    optimizer = MuonAdamW(named.items(), OptimizerConfig())
    by_step = [on_cuda(gradients(step, 0)) for step in range(6)]
    for step, values in enumerate(by_step):
        for name in SHAPES:
            named[name].grad = values[name]
        if step == 1:
            # The first step allocates state and loads kernels.
            torch.cuda.set_sync_debug_mode("error")
        optimizer.set_schedule(1.0 - step / 10, 0.9)
        optimizer.exchange.send(float(step), 15 if step == 3 else 0)
        optimizer.step()
        if step >= LAG:
            assert optimizer.exchange.agreed() == (step + 1 - LAG, 15 if step + 1 - LAG == 3 else 0)
