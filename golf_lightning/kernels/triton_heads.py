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
def _prepare_backward_part(
    dy, source, out, cos, sin, gain, part, row, used, tokens, width, eps,
    FIRST: tl.constexpr, HEADS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    GAIN: tl.constexpr,
):  # fmt: skip
    head = tl.arange(0, PADDED)[None, :, None]
    column = tl.arange(0, DIM)[None, None, :]
    inside = (row < used) & (head < HEADS)
    at = row.to(tl.int64) * width + (FIRST + head) * DIM + column
    x = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    given = dy + (row.to(tl.int64) * HEADS + head) * DIM
    g = tl.load(given + column, mask=inside, other=0.0).to(tl.float32)
    turns = column < 2 * HALF
    other = tl.where(column < HALF, column + HALF, column - HALF)
    partner = tl.load(given + other, mask=inside & turns, other=0.0).to(tl.float32)
    angle = row * HALF + tl.where(column < HALF, column, column - HALF)
    c = tl.load(cos + angle, mask=(row < used) & turns, other=1.0)
    s = tl.load(sin + angle, mask=(row < used) & turns, other=0.0)
    back = g * c + tl.where(column < HALF, partner, -partner) * s
    inverse = tl.rsqrt(tl.sum(x * x, 2) / DIM + eps)[:, :, None]
    x *= inverse
    along = tl.sum(back * x, 2)
    dx = inverse * (back - x * (along / DIM)[:, :, None])
    if GAIN:
        dx *= tl.load(gain + head, mask=head < HEADS, other=0.0).to(tl.float32)
        heads = tl.arange(0, PADDED)
        tl.store(part + heads, tl.sum(along, 0), mask=heads < HEADS)
    tl.store(out + at, dx.to(out.dtype.element_ty), mask=(row < tokens) & (head < HEADS))


@triton.jit
def _prepare_backward_kernel(
    dq, dk, dv, dv_again, qkv, cos, sin, gain, used_ptr, dqkv, parts, tokens, eps,
    H: tl.constexpr, G: tl.constexpr, HP: tl.constexpr, GP: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    used = tl.load(used_ptr)
    width = (H + 2 * G) * DIM
    part = parts + tl.program_id(0) * H
    _prepare_backward_part(
        dq, qkv, dqkv, cos, sin, gain, part, row, used, tokens, width, eps, 0, H, HP, DIM, HALF, True
    )
    _prepare_backward_part(
        dk, qkv, dqkv, cos, sin, gain, part, row, used, tokens, width, eps, H, G, GP, DIM, HALF, False
    )
    head = tl.arange(0, GP)[None, :, None]
    column = tl.arange(0, DIM)[None, None, :]
    at, inside = (row.to(tl.int64) * G + head) * DIM + column, (row < used) & (head < G)
    x = tl.load(dv + at, mask=inside, other=0.0).to(tl.float32) + tl.load(dv_again + at, mask=inside, other=0.0)
    to = dqkv + row.to(tl.int64) * width + (H + G + head) * DIM + column
    tl.store(to, x.to(dqkv.dtype.element_ty), mask=(row < tokens) & (head < G))


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


@triton.jit
def _exclude_backward_kernel(
    dout_ptr, y_ptr, v_ptr, dy_ptr, dv_ptr, used_ptr, tokens, least,
    G: tl.constexpr, GP: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    EXCLUDE: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    head = tl.arange(0, GP)[None, :, None]
    column = tl.arange(0, DIM)[None, None, :]
    exists = (row < tokens) & (head < G)
    inside = exists & (row < tl.load(used_ptr))
    at_v = (row.to(tl.int64) * G + head) * DIM + column
    v = tl.load(v_ptr + at_v, mask=inside, other=0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(v * v, 2)), least)[:, :, None]
    unit = v / norm
    dv = tl.zeros_like(v)
    for member in tl.static_range(GROUP):
        at = ((row.to(tl.int64) * G + head) * GROUP + member) * DIM + column
        g = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if EXCLUDE:
            y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
            along_y = tl.sum(y * unit, 2)[:, :, None]
            along_g = tl.sum(g * unit, 2)[:, :, None]
            dv += 2 * along_y * along_g * unit - along_y * g - along_g * y
            g -= along_g * unit
        tl.store(dy_ptr + at, g.to(dy_ptr.dtype.element_ty), mask=exists)
    tl.store(dv_ptr + at_v, (dv / norm).to(dv_ptr.dtype.element_ty), mask=exists)


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


def launch_prepare_backward(
    dq_THK: Tensor, dk_TGK: Tensor, dv_TGK: Tensor, dv_again_TGK: Tensor, qkv_TC: Tensor, cos_TR: Tensor,
    sin_TR: Tensor, gain_H: Tensor, cu_seqlens: Tensor, eps: float, rows: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of the projection, and that of the gains in parts of ``rows`` tokens."""
    tokens, heads, head_dim = dq_THK.shape
    kv_heads, programs = dk_TGK.shape[1], triton.cdiv(tokens, rows)
    dqkv = torch.empty_like(qkv_TC)
    parts = torch.empty(programs, heads, dtype=torch.float32, device=qkv_TC.device)
    if tokens:
        _prepare_backward_kernel[(programs,)](
            dq_THK, dk_TGK, dv_TGK, dv_again_TGK, qkv_TC, cos_TR, sin_TR, gain_H, cu_seqlens[-1:], dqkv, parts,
            tokens, eps,
            H=heads, G=kv_heads, HP=triton.next_power_of_2(heads), GP=triton.next_power_of_2(kv_heads),
            DIM=head_dim, HALF=cos_TR.shape[1], ROWS=rows,
        )  # fmt: skip
    return dqkv, parts


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


def launch_exclude_backward(
    dout_THK: Tensor, y_THK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, exclude: bool, least: float
) -> tuple[Tensor, Tensor]:
    """Gradients of attention's output and of the values."""
    (tokens, heads, head_dim), kv_heads = y_THK.shape, v_TGK.shape[1]
    dy, dv = torch.empty_like(y_THK), torch.empty_like(v_TGK)
    if tokens:
        _exclude_backward_kernel[(triton.cdiv(tokens, ROWS),)](
            dout_THK, y_THK, v_TGK, dy, dv, cu_seqlens[-1:], tokens, least,
            G=kv_heads, GP=triton.next_power_of_2(kv_heads), GROUP=heads // kv_heads, DIM=head_dim, ROWS=ROWS,
            EXCLUDE=exclude,
        )  # fmt: skip
    return dy, dv
