"""Facade of a layer's second half: attention's projection and the MLP, each added to the residual stream.

The fused path adds while the products write their results, so that no pass over the stream is left but the norm's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend
from golf_lightning.kernels.mixing import norm
from golf_lightning.kernels.mlp import mlp, mlp_gradients

# T tokens, D width, M hidden units


def add_branches(
    u_TD: Tensor,
    y_TD: Tensor,
    out_DD: Tensor,
    scale: float,
    up_MD: Tensor,
    down_DM: Tensor,
    *,
    backend: KernelBackend = "reference",
    cute: bool = False,
) -> Tensor:
    """``x = u + y out^T``, and then ``x`` with the MLP of ``scale`` times its norm added, ``[T, D]``.

    Args:
        u_TD: residual stream; the fused path writes the result in its place, so no gradient may need it.
        y_TD: attention's output.
        out_DD: attention's projection.
        scale: factor of the norm.
        up_MD: expanding matrix of the MLP.
        down_DM: contracting matrix.
        backend: ``reference`` or ``triton``.
        cute: as in :func:`~golf_lightning.kernels.mlp.mlp`.
    """
    if backend == "triton":
        if torch.is_grad_enabled():
            return _Residual.apply(u_TD, y_TD, out_DD, scale, up_MD, down_DM, cute)
        # Without gradients torch 2.13 does not trace a function that says what it changes in place.
        _add(u_TD, y_TD, out_DD, scale, up_MD, down_DM, cute)
        return u_TD
    x_TD = u_TD + F.linear(y_TD, out_DD)
    return x_TD + mlp(norm(x_TD, scale), up_MD, down_DM)


@torch.library.custom_op("golf::add_product", mutates_args=("onto_TO",))
def add_product_op(onto_TO: Tensor, x_TC: Tensor, weight_OC: Tensor) -> None:
    """``onto += x weight^T``."""
    onto_TO.addmm_(x_TC, weight_OC.T)


@add_product_op.register_fake
def _add_nothing(onto: Tensor, x: Tensor, weight: Tensor) -> None:
    pass


def _add(
    u_TD: Tensor, y_TD: Tensor, out_DD: Tensor, scale: float, up_MD: Tensor, down_DM: Tensor, cute: bool
) -> tuple[Tensor, ...]:
    """Both sums in place of ``u``; the norm, its inverse root mean squares, hidden units and slopes."""
    torch.ops.golf.add_product(u_TD, y_TD, out_DD)
    n_TD, inverse_T = torch.ops.golf.norm(u_TD, scale)
    hidden_TM, slope_TM = torch.ops.golf.mlp_hidden(n_TD, up_MD, cute)
    torch.ops.golf.add_product(u_TD, hidden_TM, down_DM)
    return n_TD, inverse_T, hidden_TM, slope_TM


class _Residual(torch.autograd.Function):
    # Both sums in one function: torch.compile of torch 2.11 lets a result be changed in place once, not by two in turn.

    @staticmethod
    def forward(
        ctx: Any, u_TD: Tensor, y_TD: Tensor, out_DD: Tensor, scale: float, up_MD: Tensor, down_DM: Tensor, cute: bool
    ) -> Tensor:
        n_TD, inverse_T, hidden_TM, slope_TM = _add(u_TD, y_TD, out_DD, scale, up_MD, down_DM, cute)
        ctx.save_for_backward(y_TD, out_DD, inverse_T, n_TD, up_MD, down_DM, hidden_TM, slope_TM)
        ctx.scale, ctx.cute = scale, cute
        ctx.mark_dirty(u_TD)
        return u_TD

    @staticmethod
    def backward(ctx: Any, dout_TD: Tensor) -> tuple[Tensor | None, ...]:
        y_TD, out_DD, inverse_T, *kept = ctx.saved_tensors
        dn_TD, dup_MD, ddown_DM = mlp_gradients(dout_TD, kept, (True, *ctx.needs_input_grad[4:]), ctx.cute)
        dx_TD = torch.ops.golf.norm_backward(dn_TD, dout_TD, kept[0], inverse_T, ctx.scale)
        dy_TD = dx_TD @ out_DD if ctx.needs_input_grad[1] else None
        dout_DD = dx_TD.T @ y_TD if ctx.needs_input_grad[2] else None
        return dx_TD, dy_TD, dout_DD, None, dup_MD, ddown_DM, None
