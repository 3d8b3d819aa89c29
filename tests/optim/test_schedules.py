import pytest
from hypothesis import given
from hypothesis import strategies as st

from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.schedules import lr_scale, momentum, scheduled

fractions = st.floats(0, 1)


@given(fraction=fractions, warmdown=st.floats(1e-3, 1), floor=fractions)
def test_lr_is_constant_then_linear(fraction: float, warmdown: float, floor: float) -> None:
    start = 1 - warmdown
    expected = 1.0 if fraction <= start else 1 + (floor - 1) * (fraction - start) / warmdown
    assert lr_scale(fraction, warmdown_fraction=warmdown, min_lr=floor) == pytest.approx(expected, abs=1e-9)


def test_lr_without_a_fall_stays() -> None:
    assert lr_scale(1.0, warmdown_fraction=0.0, min_lr=0.0) == 1.0


@pytest.mark.parametrize("fraction", [1.0, 1.7])
def test_lr_ends_at_its_floor(fraction: float) -> None:
    assert lr_scale(fraction, warmdown_fraction=0.72, min_lr=0.1) == 0.1


@pytest.mark.parametrize(
    "step, fraction, expected",
    [
        (0, 0.0, 0.92),
        (750, 0.155, 0.945),
        (750, 0.01, 0.945),
        (10, 0.155, 0.945),
        (1500, 0.0, 0.97),
        (10, 0.31, 0.97),
        (9999, 1.0, 0.97),
    ],
)
def test_momentum_follows_whichever_ramp_is_shorter(step: int, fraction: float, expected: float) -> None:
    value = momentum(step, fraction, start=0.92, end=0.97, warmup_steps=1500, warmup_fraction=0.31)
    assert value == pytest.approx(expected)


@pytest.mark.parametrize("steps, fraction", [(0, 0.31), (1500, 0.0)])
def test_momentum_without_a_ramp_is_there_at_once(steps: int, fraction: float) -> None:
    assert momentum(0, 0.0, start=0.92, end=0.97, warmup_steps=steps, warmup_fraction=fraction) == 0.97


def test_the_configuration_gives_both() -> None:
    config = OptimizerConfig(
        momentum=0.9, momentum_start=0.5, momentum_warmup_steps=4, warmdown_fraction=0.5, min_lr=0.2
    )
    assert scheduled(config, step=1, fraction=0.0) == (1.0, pytest.approx(0.6))
    assert scheduled(config, step=1, fraction=0.75) == (pytest.approx(0.6), 0.9)
