"""Triton kernels around attention; imported only where they run. A program takes a few tokens with all their heads."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# T tokens, H query heads, G key/value heads, h = H / G, K head dimension, R rotated half, C = (H + 2 G) K

ROWS = 4


@triton.jit
def _prepare_part(
    source, out, cos, sin, gain, row, used, tokens, width, eps,
    FIRST: tl.constexpr, HEADS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    GAIN: tl.constexpr,
):  # fmt: skip
    """Norm, rotation and gain of ``HEADS`` heads that begin at head ``FIRST`` of the projection."""
    head = tl.arange(0, PADDED)[None, :, None]
    column = tl.arange(0, DIM)[None, None, :]
    inside = (row < used) & (head < HEADS)
    from_ = source + row.to(tl.int64) * width + (FIRST + head) * DIM
    x = tl.load(from_ + column, mask=inside, other=0.0).to(tl.float32)
    turns = column < 2 * HALF
    other = tl.where(column < HALF, column + HALF, column - HALF)
    partner = tl.load(from_ + other, mask=inside & turns, other=0.0).to(tl.float32)
    angle = row * HALF + tl.where(column < HALF, column, column - HALF)
    c = tl.load(cos + angle, mask=(row < used) & turns, other=1.0)
    s = tl.load(sin + angle, mask=(row < used) & turns, other=0.0)
    inverse = tl.rsqrt(tl.sum(x * x, 2) / DIM + eps)[:, :, None]
    y = (x * c + tl.where(column < HALF, -partner, partner) * s) * inverse
    if GAIN:
        y *= tl.load(gain + head, mask=head < HEADS, other=0.0).to(tl.float32)
    to = out + (row.to(tl.int64) * HEADS + head) * DIM + column
    tl.store(to, y.to(out.dtype.element_ty), mask=(row < tokens) & (head < HEADS))


@triton.jit
def _prepare_kernel(
    qkv, q, k, v, cos, sin, gain, used_ptr, tokens, eps,
    H: tl.constexpr, G: tl.constexpr, HP: tl.constexpr, GP: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    used = tl.load(used_ptr)
    width = (H + 2 * G) * DIM
    _prepare_part(qkv, q, cos, sin, gain, row, used, tokens, width, eps, 0, H, HP, DIM, HALF, True)
    _prepare_part(qkv, k, cos, sin, gain, row, used, tokens, width, eps, H, G, GP, DIM, HALF, False)
    head = tl.arange(0, GP)[None, :, None]
    column = tl.arange(0, DIM)[None, None, :]
    from_ = qkv + row.to(tl.int64) * width + (H + G + head) * DIM + column
    x = tl.load(from_, mask=(row < used) & (head < G), other=0.0)
    tl.store(v + (row.to(tl.int64) * G + head) * DIM + column, x, mask=(row < tokens) & (head < G))


@triton.jit
def _exclude_kernel(
    y_ptr, v_ptr, out_ptr, used_ptr, tokens, least,
    G: tl.constexpr, GP: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    EXCLUDE: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    head = tl.arange(0, GP)[None, :, None]
    column = tl.arange(0, DIM)[None, None, :]
    exists = (row < tokens) & (head < G)
    inside = exists & (row < tl.load(used_ptr))
    v = tl.load(v_ptr + (row.to(tl.int64) * G + head) * DIM + column, mask=inside, other=0.0).to(tl.float32)
    unit = v / tl.maximum(tl.sqrt(tl.sum(v * v, 2)), least)[:, :, None]
    for member in tl.static_range(GROUP):
        at = ((row.to(tl.int64) * G + head) * GROUP + member) * DIM + column
        y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if EXCLUDE:
            y -= tl.sum(y * unit, 2)[:, :, None] * unit
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=exists)


def launch_prepare(
    qkv_TC: Tensor, cos_TR: Tensor, sin_TR: Tensor, gain_H: Tensor, cu_seqlens: Tensor, head_dim: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values; see the facade."""
    tokens, heads = qkv_TC.shape[0], gain_H.shape[0]
    kv_heads = (qkv_TC.shape[1] // head_dim - heads) // 2
    q, k, v = (qkv_TC.new_empty(tokens, count, head_dim) for count in (heads, kv_heads, kv_heads))
    if tokens:
        _prepare_kernel[(triton.cdiv(tokens, ROWS),)](
            qkv_TC, q, k, v, cos_TR, sin_TR, gain_H, cu_seqlens[-1:], tokens, eps,
            H=heads, G=kv_heads, HP=triton.next_power_of_2(heads), GP=triton.next_power_of_2(kv_heads),
            DIM=head_dim, HALF=cos_TR.shape[1], ROWS=ROWS,
        )  # fmt: skip
    return q, k, v


def launch_exclude(y_THK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, exclude: bool, least: float) -> Tensor:
    """See the facade."""
    (tokens, heads, head_dim), kv_heads = y_THK.shape, v_TGK.shape[1]
    out = torch.empty_like(y_THK)
    if tokens:
        _exclude_kernel[(triton.cdiv(tokens, ROWS),)](
            y_THK, v_TGK, out, cu_seqlens[-1:], tokens, least,
            G=kv_heads, GP=triton.next_power_of_2(kv_heads), GROUP=heads // kv_heads, DIM=head_dim, ROWS=ROWS,
            EXCLUDE=exclude,
        )  # fmt: skip
    return out
