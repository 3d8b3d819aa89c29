"""A layer's heads as one operation around FlashAttention-4, whose backward then needs none of its side kernels.

The package prepares its backward with row sums of the output and its gradient and with cleared float32 accumulators,
and writes these out in 16 bits afterwards. The neighbours' kernels read and write the same rows anyway: XSA's backward
does the first in passing, and the backward of the head preparation reads the accumulators as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend
from golf_lightning.kernels.flash_attention_4 import BLOCK, main_backward, serves_main_backward
from golf_lightning.kernels.heads import LEAST_NORM, NORM_EPS, serves_heads

# T tokens, S bounds, P padded rows, H query heads, G key/value heads, K head dimension, R rotated half,
# C = (H + 2 G) K

WholeHeads = Callable[[Tensor, Tensor], Tensor]
"""What the heads ``[T, H, K]`` make of a joint projection ``[T, C]`` and the gains ``[H]`` of the query heads."""

PADDED_ROWS = 16
"""Padded rows of one program in the kernels, which read and write accumulators 16 rows at a time."""


def whole_heads(
    cos_TR: Tensor, sin_TR: Tensor, cu_seqlens: Tensor, shape: tuple[int, int, int], max_seqlen: int, *,
    exclude: bool, dtype: torch.dtype, backend: KernelBackend,
) -> WholeHeads | None:  # fmt: skip
    """Head preparation, attention and, where ``exclude`` says so, XSA for all layers of one pass, fused.

    See :func:`~golf_lightning.kernels.heads.prepare_heads` and :func:`~golf_lightning.kernels.heads.exclude_self`.

    Args:
        cos_TR: cosines of the rotation, by token.
        sin_TR: sines.
        cu_seqlens: ``[S + 1]`` int32 segment bounds; rows past the last entry give zero, and zero gradients.
        shape: query heads, key/value heads, head dimension.
        max_seqlen: upper bound of a segment's length in tokens.
        exclude: whether to take from each output its component along the token's own value.
        dtype: of the projections to come.
        backend: the kernels in use.

    Returns:
        ``None`` where such heads run only in parts.
    """
    half, bounds = cos_TR.shape[1], cu_seqlens.shape[0]
    if half % 8 or not serves_heads(backend, shape[2], half):
        return None
    if not serves_main_backward(cos_TR.device, dtype, *shape, bounds):
        return None
    tokens_P = padded_tokens(cos_TR.shape[0], cu_seqlens)

    def heads(qkv_TC: Tensor, gain_H: Tensor) -> Tensor:
        out: Tensor = _Heads.apply(qkv_TC, cos_TR, sin_TR, gain_H, cu_seqlens, tokens_P, shape[2], max_seqlen, exclude)
        return out

    return heads


def padded_tokens(tokens: int, cu_seqlens: Tensor) -> Tensor:
    """Each row's token in FlashAttention-4's padded layout, ``[P]`` int32, -1 for rows between documents.

    Segment s begins at row ``(cu_seqlens[s] + 128 s) // 128 * 128``. Tokens past the last are one more.
    """
    count = cu_seqlens.shape[0]
    start_S = (cu_seqlens + torch.arange(count, dtype=torch.int32, device=cu_seqlens.device) * BLOCK) // BLOCK * BLOCK
    end_S = torch.cat([cu_seqlens[1:], cu_seqlens.new_full((1,), tokens)])
    row_P = torch.arange((tokens + count * BLOCK - 1) // BLOCK * BLOCK, dtype=torch.int32, device=cu_seqlens.device)
    segment_P = torch.searchsorted(start_S, row_P, right=True) - 1
    token_P = row_P - start_S[segment_P] + cu_seqlens[segment_P]
    return torch.where(token_P < end_S[segment_P], token_P, -1)


@torch.library.custom_op("golf::whole_heads_backward", mutates_args=())
def whole_heads_backward_op(
    dout_THK: Tensor, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, y_THK: Tensor, lse_HT: Tensor, qkv_TC: Tensor,
    cos_TR: Tensor, sin_TR: Tensor, gain_H: Tensor, cu_seqlens: Tensor, tokens_P: Tensor, max_seqlen: int,
    exclude: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the projection ``[T, C]`` and of the gains, in parts to be added up ``[parts, H]`` float32."""
    from golf_lightning.kernels.triton_heads_backward import launch_exclude_backward_apart, launch_prepare_backward

    dy, sums, logs, dq, dk, dv = launch_exclude_backward_apart(
        dout_THK.contiguous(), y_THK, v_TGK, lse_HT, cu_seqlens, tokens_P, exclude, LEAST_NORM, PADDED_ROWS
    )
    main_backward(q_THK, k_TGK, v_TGK, dy, logs, sums, dq, dk, dv, cu_seqlens, max_seqlen)
    qkv_TC, cos_TR, sin_TR, gain_H = (x.contiguous() for x in (qkv_TC, cos_TR, sin_TR, gain_H))
    rows, head_dim = PADDED_ROWS, q_THK.shape[2]
    return launch_prepare_backward(
        dq, dk, dv, None, qkv_TC, cos_TR, sin_TR, gain_H, cu_seqlens, NORM_EPS, rows, head_dim, tokens_P
    )


@whole_heads_backward_op.register_fake
def _backward_shapes(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor,
    gain: Tensor, cu_seqlens: Tensor, tokens: Tensor, max_seqlen: int, exclude: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    parts = lse.new_empty(tokens.shape[0] // PADDED_ROWS, gain.shape[0])
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), parts


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, cu_seqlens: Tensor, tokens: Tensor,
        head_dim: int, max_seqlen: int, exclude: bool,
    ) -> Tensor:  # fmt: skip
        golf = torch.ops.golf
        q, k, v = golf.prepare_heads(qkv, cos, sin, gain, cu_seqlens, head_dim)
        y, lse = golf.flash4_forward(q, k, v, cu_seqlens, max_seqlen)
        ctx.save_for_backward(q, k, v, y, lse, qkv, cos, sin, gain, cu_seqlens, tokens)
        ctx.options = max_seqlen, exclude
        out: Tensor = golf.exclude_self(y, v, cu_seqlens, exclude)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        dqkv, parts = torch.ops.golf.whole_heads_backward(dout, *ctx.saved_tensors, *ctx.options)
        wanted, gain = ctx.needs_input_grad[3], ctx.saved_tensors[8]
        return dqkv, None, None, parts.sum(0).to(gain.dtype) if wanted else None, *[None] * 5
