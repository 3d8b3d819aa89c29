"""FlashAttention-4 (``flash-attn-4``, CuTe DSL) as torch custom ops, so that torch.compile sees one graph.

The package has no custom ops of its own yet: its forward and backward entry points are wrapped here with shapes for
tracing and a backward rule. Source of the kernels: Tri Dao et al., FlashAttention, BSD licence.
"""

from typing import Any

import torch
from torch import Tensor

# T tokens, H query heads, G key/value heads, K head dimension


def flash_attention_4(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Causal attention in bf16 or fp16 on CUDA; rows past ``cu_seqlens[-1]`` stay unwritten."""
    out, _ = torch.ops.golf.flash4_forward(q_THK, k_TGK, v_TGK, cu_seqlens, max_seqlen)
    return out


@torch.library.custom_op("golf::flash4_forward", mutates_args=(), device_types="cuda")
def _forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse = _flash_attn_fwd(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        softmax_scale=q.shape[-1] ** -0.5,
        causal=True,
        return_lse=True,
    )[:2]
    return out, lse


@_forward.register_fake
def _forward_shapes(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    return torch.empty_like(q, memory_format=torch.contiguous_format), lse


@torch.library.custom_op("golf::flash4_backward", mutates_args=(), device_types="cuda")
def _backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    dq, dk, dv = _flash_attn_bwd(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        out,
        dout.contiguous(),
        lse,
        softmax_scale=q.shape[-1] ** -0.5,
        causal=True,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
    )[:3]
    return dq, dk, dv


@_backward.register_fake
def _backward_shapes(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, ctx.max_seqlen = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _gradients(ctx: Any, dout: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, cu_seqlens = ctx.saved_tensors
    dq, dk, dv = torch.ops.golf.flash4_backward(q, k, v, out, dout, lse, cu_seqlens, ctx.max_seqlen)
    return dq, dk, dv, None, None


_forward.register_autograd(_gradients, setup_context=_save)
