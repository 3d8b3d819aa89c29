"""Schedules: pure functions of the step and of the fraction of the training clock that has passed."""

from typing import NamedTuple

from golf_lightning.optim.config import OptimizerConfig


class Scheduled(NamedTuple):
    """What the schedule says for one step.

    Attributes:
        lr_scale: factor of every learning rate, in [0, 1].
        momentum: Muon's momentum.
    """

    lr_scale: float
    momentum: float


def lr_scale(fraction: float, *, warmdown_fraction: float, min_lr: float) -> float:
    """1 until the last ``warmdown_fraction`` of the run, then linear down to ``min_lr`` at its end.

    Args:
        fraction: part of the run that has passed; values outside [0, 1] count as the nearer end.
        warmdown_fraction: length of the fall, as a fraction of the run; 0 means no fall.
        min_lr: value at the end.
    """
    left = 1.0 - min(max(fraction, 0.0), 1.0)
    if left >= warmdown_fraction:
        return 1.0
    return min_lr + (1.0 - min_lr) * left / warmdown_fraction


def momentum(
    step: int, fraction: float, *, start: float, end: float, warmup_steps: int, warmup_fraction: float
) -> float:
    """Linear from ``start`` to ``end`` over ``warmup_steps`` steps or ``warmup_fraction`` of the run, the shorter.

    The original ramps over 1,500 of about 4,820 steps, 31% of its run; the second length gives a run of few steps a
    ramp that fits it.

    Args:
        step: optimizer steps done before this one.
        fraction: part of the run that has passed, in [0, 1].
        start: value at step 0.
        end: value after the ramp.
        warmup_steps: length in steps; 0 means no ramp.
        warmup_fraction: length as a fraction of the run; 0 means no ramp.
    """
    if warmup_steps == 0 or warmup_fraction == 0.0:
        return end
    done = min(1.0, max(step / warmup_steps, fraction / warmup_fraction))
    return start + (end - start) * done


def scheduled(config: OptimizerConfig, step: int, fraction: float) -> Scheduled:
    """The schedule of ``config`` after ``step`` steps and ``fraction`` of the run."""
    return Scheduled(
        lr_scale=lr_scale(fraction, warmdown_fraction=config.warmdown_fraction, min_lr=config.min_lr),
        momentum=momentum(
            step,
            fraction,
            start=config.momentum_start,
            end=config.momentum,
            warmup_steps=config.momentum_warmup_steps,
            warmup_fraction=config.momentum_warmup_fraction,
        ),
    )
