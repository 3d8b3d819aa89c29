"""Facade of a layer's entry: the residual stream mixed with the embedding, and its normalized copy."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend
from golf_lightning.kernels.heads import NORM_EPS

# T tokens, D width, P parts of a sum


def mix_and_normalize(
    x_TD: Tensor, x0_TD: Tensor, mix_2D: Tensor, scale: float, *, backend: KernelBackend = "reference"
) -> tuple[Tensor, Tensor]:
    """``u = m0 x + m1 x0`` and ``scale * rms_norm(u)``, ``[T, D]`` each.

    The fused backward pass sums the gradient of ``m`` over tokens while it has the rows at hand, instead of reading
    them again.
    """
    if backend == "triton":
        # The first layer's stream is the embedding itself, and torch.compile takes no tensor twice here.
        return _Mix.apply(x_TD.view_as(x_TD) if x_TD is x0_TD else x_TD, x0_TD, mix_2D, scale)
    first_D, second_D = mix_2D.unbind(0)
    u_TD = first_D * x_TD + second_D * x0_TD
    return u_TD, F.rms_norm(u_TD, u_TD.shape[-1:], eps=NORM_EPS) * scale


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op("golf::mix", mutates_args=())
def mix_op(x_TD: Tensor, x0_TD: Tensor, mix_2D: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See :func:`mix_and_normalize`."""
    u_TD = (mix_2D[0] * x_TD + mix_2D[1] * x0_TD).to(x_TD.dtype)
    wide_TD = _wide(u_TD)
    n_TD = wide_TD * torch.rsqrt(wide_TD.square().mean(-1, keepdim=True) + NORM_EPS) * scale
    return u_TD, n_TD.to(x_TD.dtype)


@mix_op.register_fake
def _mix_shapes(x: Tensor, x0: Tensor, mix: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@mix_op.register_kernel("cuda")
def _mix_on_gpu(x: Tensor, x0: Tensor, mix: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    from golf_lightning.kernels.triton_mixing import launch_mix

    return launch_mix(x.contiguous(), x0.contiguous(), mix.contiguous(), scale, NORM_EPS)


@torch.library.custom_op("golf::mix_backward", mutates_args=())
def mix_backward_op(
    du_TD: Tensor, dn_TD: Tensor, x_TD: Tensor, x0_TD: Tensor, mix_2D: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of x0 and of the mix, the last in parts to be added up ``[P, 2, D]``, at least float32."""
    u_TD = _wide((mix_2D[0] * x_TD + mix_2D[1] * x0_TD).to(x_TD.dtype))
    inverse = torch.rsqrt(u_TD.square().mean(-1, keepdim=True) + NORM_EPS)
    u_TD, g_TD = u_TD * inverse, _wide(dn_TD) * scale
    total_TD = _wide(du_TD) + inverse * (g_TD - u_TD * (g_TD * u_TD).mean(-1, keepdim=True))
    dmix = torch.stack([(total_TD * x).sum(0) for x in (x_TD, x0_TD)])[None]
    dx, dx0 = ((m * total_TD).to(x_TD.dtype) for m in mix_2D)
    return dx, dx0, dmix


@mix_backward_op.register_fake
def _mix_backward_shapes(
    du: Tensor, dn: Tensor, x: Tensor, x0: Tensor, mix: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    parts = min(PARTS, x.shape[0]) if x.device.type == "cuda" else 1
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(parts, *mix.shape, dtype=wide)


PARTS = 1056
"""Most programs of the backward kernel: 8 on each of 132 multiprocessors."""


@mix_backward_op.register_kernel("cuda")
def _mix_backward_on_gpu(
    du: Tensor, dn: Tensor, x: Tensor, x0: Tensor, mix: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from golf_lightning.kernels.triton_mixing import launch_mix_backward

    du, dn, x, x0, mix = (t.contiguous() for t in (du, dn, x, x0, mix))
    return launch_mix_backward(du, dn, x, x0, mix, scale, NORM_EPS, min(PARTS, x.shape[0]))


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, x0: Tensor, mix: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, x0, mix)
        ctx.scale = scale
        u, n = torch.ops.golf.mix(x, x0, mix, scale)
        return u, n

    @staticmethod
    def backward(ctx: Any, du: Tensor, dn: Tensor) -> tuple[Tensor | None, ...]:
        x, x0, mix = ctx.saved_tensors
        dx, dx0, parts = torch.ops.golf.mix_backward(du, dn, x, x0, mix, ctx.scale)
        return dx, dx0, parts.sum(0).to(mix.dtype) if ctx.needs_input_grad[2] else None, None
