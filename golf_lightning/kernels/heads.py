"""Facade of what surrounds attention: head norms, rotary and gain before it, exclusion of the own value after it.

The fused path reads the joint projection once and writes queries, keys and values once, and the same backward. Rows
past the last segment become zero on both sides of attention, forward and backward, so that kernels may leave them
unwritten in between.
"""

from typing import Any

import torch
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend

# T tokens, H query heads, G key/value heads, h = H / G, K head dimension, R rotated half, C = (H + 2 G) K

NORM_EPS = 1.1920928955078125e-07
"""Float32's epsilon, in every dtype."""

LEAST_NORM = 1e-12


def serves_heads(backend: KernelBackend, head_dim: int, rotated_half: int) -> bool:
    """Whether the fused path can take these heads: it wants a power of two, and at most all of it rotated."""
    return backend == "triton" and head_dim & (head_dim - 1) == 0 and 2 * rotated_half <= head_dim


def prepare_heads(
    qkv_TC: Tensor, cos_TR: Tensor, sin_TR: Tensor, gain_H: Tensor, cu_seqlens: Tensor, head_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries ``[T, H, K]``, keys and values ``[T, G, K]`` from the joint projection, and the values again, fused.

    Queries and keys are normalized a head at a time and rotated; queries are multiplied by their head's gain. The
    values come twice, for attention and for :func:`exclude_self`: the backward pass then adds the two gradients where
    it reads them, instead of in a pass of their own.
    """
    return _Prepare.apply(qkv_TC, cos_TR, sin_TR, gain_H, cu_seqlens, head_dim)


def exclude_self(y_THK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, *, exclude: bool) -> Tensor:
    """XSA, fused: take from each head's output its component along the token's own unit value vector.

    Args:
        y_THK: attention's output.
        v_TGK: values.
        cu_seqlens: rows past its last entry become zero, here and in the gradients.
        exclude: ``False`` only zeroes those rows.
    """
    return _Exclude.apply(y_THK, v_TGK, cu_seqlens, exclude)


def _inside(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    return (torch.arange(x.shape[0], device=x.device) < cu_seqlens[-1])[:, None, None]


def _turn(x_THK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    half = cos_TR.shape[1]
    a, b, rest = x_THK.split([half, half, x_THK.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _inverse_rms(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)


@torch.library.custom_op("golf::prepare_heads", mutates_args=())
def prepare_op(
    qkv_TC: Tensor, cos_TR: Tensor, sin_TR: Tensor, gain_H: Tensor, cu_seqlens: Tensor, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`prepare_heads`."""
    heads = gain_H.shape[0]
    x = _wide(qkv_TC).unflatten(1, (-1, head_dim))
    x = torch.where(_inside(x, cu_seqlens), x, 0)
    q, k, v = x.split([heads, *[(x.shape[1] - heads) // 2] * 2], dim=1)
    q, k = (_turn(part * _inverse_rms(part), cos_TR, sin_TR) for part in (q, k))
    q, k, v = (part.to(qkv_TC.dtype).contiguous() for part in (q * gain_H[:, None], k, v))
    return q, k, v


@prepare_op.register_fake
def _prepare_shapes(
    qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, cu_seqlens: Tensor, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, heads = qkv.shape[0], gain.shape[0]
    kv_heads = (qkv.shape[1] // head_dim - heads) // 2
    q, k, v = (qkv.new_empty(tokens, count, head_dim) for count in (heads, kv_heads, kv_heads))
    return q, k, v


@prepare_op.register_kernel("cuda")
def _prepare_on_gpu(
    qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, cu_seqlens: Tensor, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    from golf_lightning.kernels.triton_heads import launch_prepare

    return launch_prepare(qkv.contiguous(), cos.contiguous(), sin.contiguous(), gain, cu_seqlens, head_dim, NORM_EPS)


@torch.library.custom_op("golf::prepare_heads_backward", mutates_args=())
def prepare_backward_op(
    dq_THK: Tensor, dk_TGK: Tensor, dv_TGK: Tensor, dv_again_TGK: Tensor, qkv_TC: Tensor, cos_TR: Tensor,
    sin_TR: Tensor, gain_H: Tensor, cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the projection ``[T, C]`` and of the gains, in parts to be added up ``[parts, H]`` float32."""
    heads, kv_heads, head_dim = dq_THK.shape[1], dk_TGK.shape[1], dq_THK.shape[2]
    x = _wide(qkv_TC).unflatten(1, (-1, head_dim))
    inside = _inside(x, cu_seqlens)
    gain = torch.cat([gain_H, gain_H.new_ones(kv_heads)])[:, None]
    back = torch.where(inside, _turn(_wide(torch.cat([dq_THK, dk_TGK], dim=1)), cos_TR, -sin_TR), 0)
    x = torch.where(inside, x[:, : heads + kv_heads], 0)
    inverse = _inverse_rms(x)
    along = (back * x * inverse).sum(-1, keepdim=True)
    dqk = inverse * gain * (back - x * inverse * along / head_dim)
    dqkv = torch.cat([dqk, torch.where(inside, _wide(dv_TGK) + _wide(dv_again_TGK), 0)], dim=1)
    return dqkv.flatten(1).to(qkv_TC.dtype), along[:, :heads, 0].sum(0, keepdim=True)


@prepare_backward_op.register_fake
def _prepare_backward_shapes(
    dq: Tensor, dk: Tensor, dv: Tensor, dv_again: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(qkv.dtype, torch.float32)
    return torch.empty_like(qkv), qkv.new_empty(_parts(qkv), gain.shape[0], dtype=wide)


ROWS_PER_PART = 4
"""Tokens of one program in the kernels."""


def _parts(qkv_TC: Tensor) -> int:
    return -(-qkv_TC.shape[0] // ROWS_PER_PART) if qkv_TC.device.type == "cuda" else 1


@prepare_backward_op.register_kernel("cuda")
def _prepare_backward_on_gpu(
    dq: Tensor, dk: Tensor, dv: Tensor, dv_again: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from golf_lightning.kernels.triton_heads_backward import launch_prepare_backward

    rows, head_dim = ROWS_PER_PART, dq.shape[2]
    dq, dk, dv, dv_again, qkv, cos, sin, gain = (x.contiguous() for x in (dq, dk, dv, dv_again, qkv, cos, sin, gain))
    return launch_prepare_backward(dq, dk, dv, dv_again, qkv, cos, sin, gain, cu_seqlens, NORM_EPS, rows, head_dim)


@torch.library.custom_op("golf::exclude_self", mutates_args=())
def exclude_op(y_THK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, exclude: bool) -> Tensor:
    """See :func:`exclude_self`."""
    y = torch.where(_inside(y_THK, cu_seqlens), _wide(y_THK), 0).unflatten(1, (v_TGK.shape[1], -1))
    if exclude:
        v = _wide(v_TGK)[:, :, None]
        unit = v / v.norm(dim=-1, keepdim=True).clamp_min(LEAST_NORM)
        y = y - (y * unit).sum(-1, keepdim=True) * unit
    return y.flatten(1, 2).to(y_THK.dtype).contiguous()


@exclude_op.register_fake
def _exclude_shapes(y: Tensor, v: Tensor, cu_seqlens: Tensor, exclude: bool) -> Tensor:
    return y.new_empty(y.shape)


@exclude_op.register_kernel("cuda")
def _exclude_on_gpu(y: Tensor, v: Tensor, cu_seqlens: Tensor, exclude: bool) -> Tensor:
    from golf_lightning.kernels.triton_heads import launch_exclude

    return launch_exclude(y.contiguous(), v.contiguous(), cu_seqlens, exclude, LEAST_NORM)


@torch.library.custom_op("golf::exclude_self_backward", mutates_args=())
def exclude_backward_op(
    dout_THK: Tensor, y_THK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, exclude: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of attention's output and of the values."""
    groups = (v_TGK.shape[1], -1)
    inside = _inside(y_THK, cu_seqlens)
    g, y = (torch.where(inside, _wide(x), 0).unflatten(1, groups) for x in (dout_THK, y_THK))
    if not exclude:
        return g.flatten(1, 2).to(y_THK.dtype).contiguous(), v_TGK.new_zeros(v_TGK.shape)
    v = _wide(v_TGK)[:, :, None]
    norm = v.norm(dim=-1, keepdim=True).clamp_min(LEAST_NORM)
    unit = v / norm
    along_y, along_g = ((x * unit).sum(-1, keepdim=True) for x in (y, g))
    dy = g - along_g * unit
    dv = (2 * along_y * along_g * unit - along_y * g - along_g * y).sum(2, keepdim=True) / norm
    return dy.flatten(1, 2).to(y_THK.dtype).contiguous(), dv[:, :, 0].to(v_TGK.dtype).contiguous()


@exclude_backward_op.register_fake
def _exclude_backward_shapes(
    dout: Tensor, y: Tensor, v: Tensor, cu_seqlens: Tensor, exclude: bool
) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), v.new_empty(v.shape)


@exclude_backward_op.register_kernel("cuda")
def _exclude_backward_on_gpu(
    dout: Tensor, y: Tensor, v: Tensor, cu_seqlens: Tensor, exclude: bool
) -> tuple[Tensor, Tensor]:
    from golf_lightning.kernels.triton_heads_backward import launch_exclude_backward

    return launch_exclude_backward(dout.contiguous(), y.contiguous(), v.contiguous(), cu_seqlens, exclude, LEAST_NORM)


class _Prepare(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, cu_seqlens: Tensor, head_dim: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(qkv, cos, sin, gain, cu_seqlens)
        q, k, v = torch.ops.golf.prepare_heads(qkv, cos, sin, gain, cu_seqlens, head_dim)
        return q, k, v, v.view_as(v)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, dv_again: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cos, sin, gain, cu_seqlens = ctx.saved_tensors
        dqkv, parts = torch.ops.golf.prepare_heads_backward(dq, dk, dv, dv_again, qkv, cos, sin, gain, cu_seqlens)
        return dqkv, None, None, parts.sum(0).to(gain.dtype) if ctx.needs_input_grad[3] else None, None, None


class _Exclude(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, v: Tensor, cu_seqlens: Tensor, exclude: bool) -> Tensor:
        ctx.save_for_backward(y, v, cu_seqlens)
        ctx.exclude = exclude
        out: Tensor = torch.ops.golf.exclude_self(y, v, cu_seqlens, exclude)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, v, cu_seqlens = ctx.saved_tensors
        dy, dv = torch.ops.golf.exclude_self_backward(dout, y, v, cu_seqlens, ctx.exclude)
        return dy, dv, None, None
