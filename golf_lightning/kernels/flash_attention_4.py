"""FlashAttention-4 (``flash-attn-4``, CuTe DSL) as torch custom ops, so that torch.compile sees one graph.

The package has no custom ops of its own yet: its forward and backward entry points are wrapped here with shapes for
tracing and a backward rule. Source of the kernels: Tri Dao et al., FlashAttention, BSD licence.
"""

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

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


def _call_backward(
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


@torch.library.custom_op("golf::flash4_backward", mutates_args=(), device_types="cuda")
def _backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _call_backward(q, k, v, out, dout, lse, cu_seqlens, max_seqlen)


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


BLOCK = 128
"""Rows of a tile in the backward; each segment's padded rows begin at a multiple of it."""


@torch.compiler.assume_constant_result
def serves_main_backward(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, bounds: int
) -> bool:
    """Whether :func:`main_backward` knows the kernel that the package has for these heads and ``bounds`` bounds.

    That kernel is no public interface, and the order of its accumulators none either: one version, one chip, one head
    dimension. With a head of queries for each of keys it leaves no accumulators of these, and past 256 segments it
    wants a table.
    """
    return (
        _version() == "4.0.0b36"
        and torch.cuda.get_device_capability(device) == (9, 0)
        and (dtype, head_dim) == (torch.bfloat16, 64)
        and heads > kv_heads
        and bounds <= 257
    )


@functools.cache
def _version() -> str | None:
    try:
        return importlib.metadata.version("flash-attn-4")
    except importlib.metadata.PackageNotFoundError:
        return None


def main_backward(
    q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, dout_THK: Tensor, logs_HP: Tensor, sums_HP: Tensor,
    dq: Tensor, dk: Tensor, dv: Tensor, cu_seqlens: Tensor, max_seqlen: int,
) -> None:  # fmt: skip
    """The backward's main kernel alone: adds the gradients of q, k and v to float32 ``[H, P K]``, ``[G, P K]`` twice.

    Args:
        q_THK: queries; contiguous, as all.
        k_TGK: keys.
        v_TGK: values.
        dout_THK: gradient of the output; finite in padding rows too.
        logs_HP: base-2 logarithms of the softmax's sums by padded row; infinity between documents.
        sums_HP: sums of output times gradient, likewise; 0 between documents.
        dq: what the gradient of the queries is added to, in the kernel's own order and without the softmax's scale.
        dk: likewise of the keys.
        dv: of the values; they have no scale.
        cu_seqlens: segment bounds.
        max_seqlen: upper bound of a segment's length in tokens.
    """
    (_, heads, head_dim), kv_heads = q_THK.shape, k_TGK.shape[1]
    kernel = _main_kernel(heads, kv_heads, head_dim, q_THK.dtype, cu_seqlens.shape[0], max_seqlen)
    nothing = [None] * 7  # lengths, windows, semaphores
    rest = ((None, None), None, None)  # of score and mask functions, sparse blocks, the table of segments
    tensors = (q_THK, k_TGK, v_TGK, dout_THK, logs_HP, sums_HP, dq, dk, dv)
    kernel(*tensors, head_dim**-0.5, cu_seqlens, cu_seqlens, *nothing, *rest)


@functools.cache
def _main_kernel(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, bounds: int, max_seqlen: int
) -> Callable[..., None]:
    """The package compiles its kernels, or loads them, for tensors without memory too, and keeps them in a cache."""
    from flash_attn.cute.interface import _flash_attn_bwd

    kept = _flash_attn_bwd.compile_cache
    _flash_attn_bwd.compile_cache = watch = _Watch(kept)
    try:
        with FakeTensorMode():
            q, k = (torch.empty(BLOCK, count, head_dim, dtype=dtype, device="cuda") for count in (heads, kv_heads))
            lse = torch.empty(heads, BLOCK, device="cuda")
            cu_seqlens = torch.empty(bounds, dtype=torch.int32, device="cuda")
            _call_backward(q, k, k, q, q, lse, cu_seqlens, max_seqlen)
    finally:
        _flash_attn_bwd.compile_cache = kept
    kernel: Callable[..., None] = kept[watch.key]
    return kernel


class _Watch:
    """A cache that remembers which entry was asked for last."""

    def __init__(self, cache: Any) -> None:
        self.cache, self.key = cache, None

    def __contains__(self, key: Any) -> bool:
        self.key = key
        return key in self.cache

    def __setitem__(self, key: Any, kernel: Any) -> None:
        self.cache[key] = kernel
