"""Facade of the feed-forward product: ``leaky_relu(x up^T, 0.5)^2 down^T``."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

# T tokens, D width, M hidden units

NEGATIVE_SLOPE = 0.5


def leaky_relu_squared(x: Tensor) -> Tensor:
    """The activation of the record's MLP: LeakyReLU with slope 0.5, then squared."""
    y = F.leaky_relu(x, NEGATIVE_SLOPE)
    return y * y


def mlp(x_TD: Tensor, up_MD: Tensor, down_DM: Tensor, *, observe: Callable[[Tensor], None] | None = None) -> Tensor:
    """``[T, D]`` in, ``[T, D]`` out.

    Args:
        x_TD: normalized input.
        up_MD: expanding matrix.
        down_DM: contracting matrix.
        observe: called with the hidden activations ``[T, M]`` that enter ``down``; calibration uses it.
    """
    hidden_TM = leaky_relu_squared(F.linear(x_TD, up_MD))
    if observe is not None:
        observe(hidden_TM)
    return F.linear(hidden_TM, down_DM)
