"""The average against its closed form, and the run lengths it must serve."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks.ema import EMA
from golf_lightning.errors import GolfError


class Fixture:
    """Trainer and module as the callback sees them, with one parameter."""

    def __init__(self, ema: EMA) -> None:
        self.ema = ema
        self.parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.module: Any = SimpleNamespace()
        self.trainer: Any = SimpleNamespace(
            fit_loop=SimpleNamespace(_should_accumulate=lambda: False), state=SimpleNamespace(fn="fit")
        )
        ema._parameters = lambda module: {"weight": self.parameter}  # type: ignore[method-assign]

    def run(self, values: torch.Tensor) -> None:
        self.ema.on_train_start(self.trainer, self.module)
        for row in values:
            self.parameter.data.copy_(row)
            self.ema.on_train_batch_end(self.trainer, self.module, None, None, 0)


def test_the_average_equals_its_closed_form() -> None:
    values = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ema = EMA(decay=0.8, window=0.5)
    Fixture(ema).run(values)
    decays = [min(0.8, 1 - 1 / (1 + 0.5 * t)) for t in range(40)]
    expected = torch.zeros(3, dtype=torch.float64)
    for t, row in enumerate(values):
        weight = 1 - decays[t]
        for later in decays[t + 1 :]:
            weight *= later
        expected += weight * row
    torch.testing.assert_close(ema.average["weight"], expected)


def test_weights_of_the_average_sum_to_one_from_the_first_step() -> None:
    for steps in (1, 2, 30):
        ema = EMA(decay=0.9965)
        Fixture(ema).run(torch.ones(steps, 3, dtype=torch.float64))
        torch.testing.assert_close(ema.average["weight"], torch.ones(3, dtype=torch.float64))


def test_a_short_run_averages_over_its_end_and_a_long_one_like_the_record() -> None:
    ema = EMA(decay=0.997)
    assert ema.decay_at(0) == 0
    assert 1 / (1 - ema.decay_at(238)) == pytest.approx(1 + 0.07 * 238)
    assert ema.decay_at(4820) == 0.997


def test_validation_sees_the_average_and_training_goes_on_with_the_weights() -> None:
    fixture = Fixture(EMA(decay=0.5))
    fixture.run(torch.randn(5, 3, dtype=torch.float64))
    raw = fixture.parameter.detach().clone()
    fixture.ema.on_validation_start(fixture.trainer, fixture.module)
    assert torch.equal(fixture.parameter, fixture.ema.average["weight"])
    fixture.ema.on_validation_end(fixture.trainer, fixture.module)
    assert torch.equal(fixture.parameter, raw)
    fixture.ema.on_train_end(fixture.trainer, fixture.module)
    assert torch.equal(fixture.parameter, fixture.ema.average["weight"])


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"window": 0.0}])
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(GolfError):
        EMA(**options)
