"""Facade of causal, variable-length, grouped-query attention that never crosses a document.

One signature, several backends. ``reference`` is written out in plain PyTorch and is the oracle of the tests;
``segments`` is the CPU path (one fused kernel call a document); ``torch`` is FlashAttention-2 as torch ships it;
``fa4`` is FlashAttention-4 for Hopper and Blackwell. All of them return zeros in padding rows.
"""

import importlib.util
import inspect
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.errors import GolfError

# T tokens, H query heads, G key/value heads, K head dimension, S segments

AttentionBackend = Literal["auto", "reference", "segments", "torch", "fa4"]


def varlen_attention(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int,
    backend: AttentionBackend,
    masked: bool = True,
) -> Tensor:
    """Causal softmax attention inside each segment, scale ``1 / sqrt(K)``.

    Args:
        q_THK: queries; every group of ``H / G`` heads shares one key/value head.
        k_TGK: keys.
        v_TGK: values.
        cu_seqlens: ``[S + 1]`` int32 segment bounds, padded by repeating the last entry; rows past it are padding.
        max_seqlen: upper bound of a segment's length in tokens; constant, so that nothing recompiles.
        backend: a name other than ``auto`` (see :func:`choose_backend`).
        masked: ``False`` may leave padding rows of the output and of the gradients unwritten, for callers that zero
            them on both sides.

    Returns:
        ``[T, H, K]``, zero in padding rows.
    """
    if backend == "reference":
        return _reference(q_THK, k_TGK, v_TGK, cu_seqlens)
    if backend == "segments":
        return _segments(q_THK, k_TGK, v_TGK, cu_seqlens)
    kernel = _torch_flash if backend == "torch" else _fa4
    if not masked:
        return kernel(q_THK, k_TGK, v_TGK, cu_seqlens, max_seqlen)
    # Kernels leave padding rows unwritten in the output and in the gradients, and 0 x NaN would reach weight gradients.
    # Masking both sides of the call zeroes both; a compiler fuses the masks into their neighbours.
    valid_T = torch.arange(q_THK.shape[0], device=q_THK.device) < cu_seqlens[-1]
    q, k, v = (torch.where(valid_T[:, None, None], x, 0) for x in (q_THK, k_TGK, v_TGK))
    return torch.where(valid_T[:, None, None], kernel(q, k, v, cu_seqlens, max_seqlen), 0)


@torch.compiler.assume_constant_result
def choose_backend(backend: AttentionBackend, device: torch.device, head_dim: int = 64) -> AttentionBackend:
    """Resolve ``auto`` to the fastest backend that works on ``device``; check an explicit choice.

    Raises:
        GolfError: the backend needs a GPU, or a package that is missing.
    """
    if backend == "auto":
        if device.type != "cuda":
            return "segments"
        return "fa4" if torch.cuda.get_device_capability(device)[0] >= 9 and _fa4_installed() else "torch"
    if backend in ("torch", "fa4") and device.type != "cuda":
        raise GolfError(
            f"Attention backend {backend!r} needs a CUDA GPU; choose auto, segments or reference on {device}."
        )
    if backend == "fa4" and not _fa4_installed():
        raise GolfError(
            'Attention backend fa4 is not installed; run: pip install flash-attn-4==4.0.0b36 "nvidia-cutlass-dsl[cu13]"'
        )
    return backend


def _fa4_installed() -> bool:
    try:
        return importlib.util.find_spec("flash_attn.cute.interface") is not None
    except ModuleNotFoundError:
        return False


def _reference(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor) -> Tensor:
    tokens, heads, head_dim = q_THK.shape
    groups = heads // k_TGK.shape[1]
    rows_T = torch.arange(tokens, device=q_THK.device)
    segment_T = torch.searchsorted(cu_seqlens.long(), rows_T, right=True)
    allowed_TT = (segment_T[:, None] == segment_T) & (rows_T[:, None] >= rows_T)
    k_THK, v_THK = (x.repeat_interleave(groups, dim=1) for x in (k_TGK, v_TGK))
    scores_HTT = torch.einsum("qhd,khd->hqk", q_THK, k_THK) * head_dim**-0.5
    weights_HTT = scores_HTT.masked_fill(~allowed_TT, -torch.inf).softmax(-1)
    out_THK = torch.einsum("hqk,khd->qhd", weights_HTT, v_THK)
    return torch.where((rows_T < cu_seqlens[-1])[:, None, None], out_THK, 0)


def _segments(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor) -> Tensor:
    bounds = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False) if stop > start]
    if not lengths:
        return torch.zeros_like(q_THK)
    used, tokens = bounds[-1], q_THK.shape[0]
    if len(set(lengths)) == 1:  # windows of one length, as in test-time training: one batched call
        out = _sdpa(*(x[:used].unflatten(0, (-1, lengths[0])) for x in (q_THK, k_TGK, v_TGK))).flatten(0, 1)
    else:
        parts = zip(*(x[:used].split(lengths) for x in (q_THK, k_TGK, v_TGK)), strict=True)
        out = torch.cat([_sdpa(q[None], k[None], v[None])[0] for q, k, v in parts])
    return out if used == tokens else F.pad(out, (0, 0, 0, 0, 0, tokens - used))


def _sdpa(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
    groups = q_BTHK.shape[2] // k_BTGK.shape[2]
    # Heads repeated by hand: on CPU enable_gqa falls back to the unfused path.
    k, v = (x.repeat_interleave(groups, dim=2) if groups > 1 else x for x in (k_BTGK, v_BTGK))
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def _torch_flash(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"enable_gqa": True} if _varlen_wants_gqa() else {}
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=(-1, 0), **options)
    assert isinstance(out, Tensor)
    return out


@torch.compiler.assume_constant_result
def _varlen_wants_gqa() -> bool:
    """torch 2.13 asks for ``enable_gqa`` with fewer key heads than query heads; 2.11 does not know the argument."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _fa4(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    from golf_lightning.kernels.flash_attention_4 import flash_attention_4

    return flash_attention_4(q, k, v, cu_seqlens, max_seqlen)
