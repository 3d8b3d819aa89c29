"""Triton kernels around attention's backward; imported only where they run.

They run in two ways. Between tensors by token, a program takes a few tokens with all their heads. Around
FlashAttention-4's main kernel alone (``APART``), a program takes a few padded rows with the heads of one key, and does
in passing what the package has kernels of its own for: before, row sums, logarithms and cleared accumulators; after,
reading these accumulators.
"""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# T tokens, P padded rows, H query heads, G key/value heads, K head dimension, R rotated half, C = (H + 2 G) K

ROWS = 4

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _pieces(first, group, padded, piece, COUNT: tl.constexpr, DIM: tl.constexpr):
    """Where 16 rows of ``COUNT`` heads lie in accumulators, ``[COUNT, K / 8, 128]``: 128 values for each 8 columns."""
    # Compute capability 9: 64 rows at a time, as the 4 warps of wgmma hold 16 each.
    head = first + tl.arange(0, COUNT)[:, None, None]
    start = (head.to(tl.int64) * padded + group // 4 * 64) * DIM + group % 4 * 128
    return start + piece[None, :, None] * 512 + tl.arange(0, 128)[None, None, :]


@triton.jit
def _read(accumulator, first, group, padded, piece, mask, COUNT: tl.constexpr, DIM: tl.constexpr):
    """16 rows ``[16, COUNT, K]``, 0 where ``mask`` (``[COUNT, K / 8, 1]``) is off."""
    x = tl.load(accumulator + _pieces(first, group, padded, piece, COUNT, DIM), mask=mask, other=0.0)
    # In a piece, 4 lanes hold a row, 2 neighbours each and behind these 2 of the row 8 further down.
    x = tl.permute(tl.reshape(x, (COUNT, DIM // 8, 8, 4, 2, 2)), (4, 2, 0, 1, 3, 5))
    return tl.reshape(x, (16, COUNT, DIM))


@triton.jit
def _prepare_backward_part(
    dy, source, out, cos, sin, gain, part, group, row, begun, used, tokens, padded, width, eps, scale, first,
    FIRST: tl.constexpr, HEADS: tl.constexpr, COUNT: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    GAIN: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """``COUNT`` heads from ``first`` on, of the ``HEADS`` that begin at head ``FIRST`` of the projection."""
    PADDED: tl.constexpr = triton.next_power_of_2(COUNT)
    heads = tl.arange(0, PADDED)
    head = first + heads[None, :, None]
    column = tl.arange(0, DIM)[None, None, :]
    exists = (row >= 0) & (row < tokens) & (heads < COUNT)[None, :, None]
    inside = exists & (row < used)
    at = row.to(tl.int64) * width + (FIRST + head) * DIM + column
    x = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    turns = column < 2 * HALF
    if APART:
        piece = tl.arange(0, DIM // 8)
        other = tl.where(piece < HALF // 8, piece + HALF // 8, piece - HALF // 8)
        mask = (heads < COUNT)[:, None, None] & begun
        g = _read(dy, first, group, padded, piece, mask, PADDED, DIM)
        mask &= (piece < HALF // 4)[None, :, None]
        partner = _read(dy, first, group, padded, other, mask, PADDED, DIM)
    else:
        other = tl.where(column < HALF, column + HALF, column - HALF)
        given = dy + (row.to(tl.int64) * HEADS + head) * DIM
        g = tl.load(given + column, mask=inside, other=0.0).to(tl.float32)
        partner = tl.load(given + other, mask=inside & turns, other=0.0).to(tl.float32)
    angle = row * HALF + (column % HALF if HALF else column)
    turned = (row >= 0) & (row < used) & turns
    c = tl.load(cos + angle, mask=turned, other=1.0)
    s = tl.load(sin + angle, mask=turned, other=0.0)
    back = (g * c + tl.where(column < HALF, partner, -partner) * s) * scale
    inverse = tl.rsqrt(tl.sum(x * x, 2) / DIM + eps)[:, :, None]
    x *= inverse
    along = tl.sum(back * x, 2)
    dx = inverse * (back - x * (along / DIM)[:, :, None])
    if GAIN:
        dx *= tl.load(gain + head, mask=head < HEADS, other=0.0).to(tl.float32)
        tl.store(part + first + heads, tl.sum(along, 0), mask=heads < COUNT)
    tl.store(out + at, dx.to(out.dtype.element_ty), mask=exists)


@triton.jit
def _prepare_backward_kernel(
    dq, dk, dv, dv_again, qkv, cos, sin, gain, used_ptr, dqkv, parts, tokens, eps, tokens_ptr, padded, scale,
    H: tl.constexpr, G: tl.constexpr, COUNT: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
    APART: tl.constexpr,
):  # fmt: skip
    group, first = tl.program_id(0) // (G // COUNT), tl.program_id(0) % (G // COUNT) * COUNT
    place = (group * ROWS + tl.arange(0, ROWS))[:, None, None]
    row = tl.load(tokens_ptr + place) if APART else place
    used = tl.load(used_ptr)
    begin = tl.load(tokens_ptr + group * ROWS) if APART else 0
    begun = (begin >= 0) & (begin < used)
    width = (H + 2 * G) * DIM
    part = parts + group * H
    _prepare_backward_part(
        dq, qkv, dqkv, cos, sin, gain, part, group, row, begun, used, tokens, padded, width, eps, scale,
        first * (H // G), 0, H, COUNT * (H // G), DIM, HALF, True, APART,
    )  # fmt: skip
    _prepare_backward_part(
        dk, qkv, dqkv, cos, sin, gain, part, group, row, begun, used, tokens, padded, width, eps, scale,
        first, H, G, COUNT, DIM, HALF, False, APART,
    )  # fmt: skip
    PADDED: tl.constexpr = triton.next_power_of_2(COUNT)
    heads = tl.arange(0, PADDED)
    head = first + heads[None, :, None]
    column = tl.arange(0, DIM)[None, None, :]
    exists = (row >= 0) & (row < tokens) & (heads < COUNT)[None, :, None]
    if APART:
        mask = (heads < COUNT)[:, None, None] & begun
        x = _read(dv, first, group, padded, tl.arange(0, DIM // 8), mask, PADDED, DIM)
    else:
        at, inside = (row.to(tl.int64) * G + head) * DIM + column, exists & (row < used)
        x = tl.load(dv + at, mask=inside, other=0.0).to(tl.float32) + tl.load(dv_again + at, mask=inside, other=0.0)
    to = dqkv + row.to(tl.int64) * width + (H + G + head) * DIM + column
    tl.store(to, x.to(dqkv.dtype.element_ty), mask=exists)


@triton.jit
def _exclude_backward_kernel(
    dout_ptr, y_ptr, v_ptr, dy_ptr, dv_ptr, used_ptr, tokens, least, tokens_ptr, padded, lse_ptr, sums_ptr, logs_ptr,
    dq_ptr, dk_ptr,
    G: tl.constexpr, COUNT: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    EXCLUDE: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    GP: tl.constexpr = triton.next_power_of_2(COUNT)
    group, first = tl.program_id(0) // (G // COUNT), tl.program_id(0) % (G // COUNT) * COUNT
    place = (group * ROWS + tl.arange(0, ROWS))[:, None, None]
    row = tl.load(tokens_ptr + place) if APART else place
    index = tl.arange(0, GP)[None, :, None]
    head = first + index
    column = tl.arange(0, DIM)[None, None, :]
    exists = (row >= 0) & (row < tokens) & (index < COUNT)
    used = tl.load(used_ptr)
    inside = exists & (row < used)
    at_v = (row.to(tl.int64) * G + head) * DIM + column
    v = tl.load(v_ptr + at_v, mask=inside, other=0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(v * v, 2)), least)[:, :, None]
    unit = v / norm
    dv = tl.zeros_like(v)
    if APART:
        # Attention adds to blocks of 128 rows whose first row is a document's.
        begin = tl.load(tokens_ptr + group * ROWS // 128 * 128)
        counts = (index < COUNT) & (begin >= 0) & (begin < used)
        share = group * (ROWS * DIM) + tl.arange(0, ROWS * DIM)[:, None, None]
        nothing = tl.zeros((ROWS * DIM, GP, 1), tl.float32)
        tl.store(dk_ptr + head.to(tl.int64) * padded * DIM + share, nothing, mask=counts)
    for member in tl.static_range(GROUP):
        query = head * GROUP + member
        at = (row.to(tl.int64) * G * GROUP + query) * DIM + column
        g = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if EXCLUDE or APART:
            y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if EXCLUDE:
            along_y = tl.sum(y * unit, 2)[:, :, None]
            along_g = tl.sum(g * unit, 2)[:, :, None]
            dv += 2 * along_y * along_g * unit - along_y * g - along_g * y
            g -= along_g * unit
        dy = g.to(dy_ptr.dtype.element_ty)
        tl.store(dy_ptr + at, dy, mask=exists)
        if APART:
            sums = tl.sum(y * dy.to(tl.float32), 2)[:, :, None]
            lse = tl.load(lse_ptr + query.to(tl.int64) * tokens + row, mask=inside, other=float("inf"))
            to = query.to(tl.int64) * padded + place
            tl.store(sums_ptr + to, sums, mask=index < COUNT)
            tl.store(logs_ptr + to, lse * LOG2_E, mask=index < COUNT)
            tl.store(dq_ptr + query.to(tl.int64) * padded * DIM + share, nothing, mask=counts)
    dv = dv / norm
    if APART:  # the inverse of _read
        dv = tl.permute(tl.reshape(dv, (2, 8, GP, DIM // 8, 4, 2)), (2, 3, 1, 4, 0, 5))
        to = _pieces(first, group, padded, tl.arange(0, DIM // 8), GP, DIM)
        tl.store(dv_ptr + to, tl.reshape(dv, (GP, DIM // 8, 128)), mask=counts.permute(1, 0, 2))
    else:
        tl.store(dv_ptr + at_v, dv.to(dv_ptr.dtype.element_ty), mask=exists)


def launch_prepare_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, dv_again: Tensor | None, qkv_TC: Tensor, cos_TR: Tensor, sin_TR: Tensor,
    gain_H: Tensor, cu_seqlens: Tensor, eps: float, rows: int, head_dim: int, tokens_P: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of the projection, and that of the gains in parts of ``rows`` rows.

    The given gradients are ``[T, H, K]`` and twice ``[T, G, K]``; or, with ``tokens_P`` and no ``dv_again``,
    FlashAttention-4's accumulators ``[H, P K]`` and twice ``[G, P K]``.
    """
    tokens, heads = qkv_TC.shape[0], gain_H.shape[0]
    kv_heads, apart = (qkv_TC.shape[1] // head_dim - heads) // 2, tokens_P is not None
    places, count = (tokens, kv_heads) if tokens_P is None else (tokens_P.shape[0], 1)
    groups = triton.cdiv(places, rows)
    dqkv = torch.empty_like(qkv_TC)
    parts = torch.empty(groups, heads, dtype=torch.float32, device=qkv_TC.device)
    if tokens:
        _prepare_backward_kernel[(groups * kv_heads // count,)](
            dq, dk, dv, dv_again, qkv_TC, cos_TR, sin_TR, gain_H, cu_seqlens[-1:], dqkv, parts, tokens, eps, tokens_P,
            places, head_dim**-0.5 if apart else 1.0,
            H=heads, G=kv_heads, COUNT=count, DIM=head_dim, HALF=cos_TR.shape[1], ROWS=rows, APART=apart,
        )  # fmt: skip
    return dqkv, parts


def launch_exclude_backward(
    dout_THK: Tensor, y_THK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, exclude: bool, least: float
) -> tuple[Tensor, Tensor]:
    """Gradients of attention's output and of the values."""
    (tokens, heads, head_dim), kv_heads = y_THK.shape, v_TGK.shape[1]
    dy, dv = torch.empty_like(y_THK), torch.empty_like(v_TGK)
    if tokens:
        _exclude_backward_kernel[(triton.cdiv(tokens, ROWS),)](
            dout_THK, y_THK, v_TGK, dy, dv, cu_seqlens[-1:], tokens, least, None, tokens, None, None, None, None, None,
            G=kv_heads, COUNT=kv_heads, GROUP=heads // kv_heads, DIM=head_dim, ROWS=ROWS, EXCLUDE=exclude, APART=False,
        )  # fmt: skip
    return dy, dv


def launch_exclude_backward_apart(
    dout_THK: Tensor, y_THK: Tensor, v_TGK: Tensor, lse_HT: Tensor, cu_seqlens: Tensor, tokens_P: Tensor,
    exclude: bool, least: float, rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What FlashAttention-4's main backward kernel reads and adds to.

    Returns:
        The gradient of attention's output ``[T, H, K]``, its row sums with the output and the base-2 logarithms of the
        softmax's sums ``[H, P]`` (0 and infinity in rows without a token), and the accumulators of queries, keys and
        values ``[H, P K]`` and twice ``[G, P K]``: zero, and the values' with the gradient that they have already.
        Blocks of 128 rows without a document stay unwritten.
    """
    (tokens, heads, head_dim), kv_heads, places = y_THK.shape, v_TGK.shape[1], tokens_P.shape[0]
    dy = torch.empty_like(y_THK)
    sums, logs, dq, dk, dv = (
        torch.empty(count, places * width, dtype=torch.float32, device=y_THK.device)
        for count, width in ((heads, 1), (heads, 1), (heads, head_dim), (kv_heads, head_dim), (kv_heads, head_dim))
    )
    if tokens:
        _exclude_backward_kernel[(triton.cdiv(places, rows) * kv_heads,)](
            dout_THK, y_THK, v_TGK, dy, dv, cu_seqlens[-1:], tokens, least, tokens_P, places, lse_HT, sums, logs, dq,
            dk, G=kv_heads, COUNT=1, GROUP=heads // kv_heads, DIM=head_dim, ROWS=rows, EXCLUDE=exclude, APART=True,
        )  # fmt: skip
    return dy, sums, logs, dq, dk, dv
