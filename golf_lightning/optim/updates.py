"""The mathematics of one step, on one rank's tensors: Muon, AdamW, the norm of the gradient.

Shapes: N matrices of a bank, S of them on one rank; R rows, C columns.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from golf_lightning.optim.newton_schulz import Polynomial, normalize_rows, orthogonalize


def muon_update(
    gradient_SRC: Tensor, state: dict[str, Any], momentum: float, coefficients: Sequence[Polynomial], dtype: torch.dtype
) -> Tensor:
    """Momentum with a look ahead, rows normalized, orthogonalized.

    Args:
        gradient_SRC: ``[S, R, C]`` float32, overwritten; S may be 0.
        state: gets or holds ``momentum``, ``[S, R, C]`` float32, which is updated.
        momentum: factor of the old momentum.
        coefficients: Newton-Schulz polynomials.
        dtype: dtype of the Newton-Schulz products and of the result.

    Returns:
        ``[S, R, C]``, to be subtracted by :func:`apply_muon`.
    """
    if not state:
        state["momentum"] = torch.zeros_like(gradient_SRC)
    if not len(gradient_SRC):
        return gradient_SRC
    state["momentum"].mul_(momentum).add_(gradient_SRC)
    ahead_SRC = gradient_SRC.add_(state["momentum"], alpha=momentum)
    return orthogonalize(normalize_rows(ahead_SRC), coefficients, dtype)


def apply_muon(bank_NRC: Tensor, update_NRC: Tensor, lr: float, weight_decay: float) -> None:
    """``W = (1 - lr wd) W - lr sqrt(max(1, rows / columns)) update``, in place."""
    rows, columns = bank_NRC.shape[-2:]
    bank_NRC.mul_(1.0 - lr * weight_decay)
    bank_NRC.add_(update_NRC, alpha=-lr * math.sqrt(max(1.0, rows / columns)))


def adamw_update(
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """torch's fused AdamW on float32 parameters, in place; states get or hold ``step``, ``exp_avg``, ``exp_avg_sq``."""
    for parameter, state in zip(parameters, states, strict=True):
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
    adamw(
        list(parameters),
        list(gradients),
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )


def square_norm(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Sum of the squares of all values, 0-d float32 on ``device``."""
    if not tensors:
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(list(tensors))).square().sum()
