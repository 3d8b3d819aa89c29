"""Triton kernels of attention from a chunk to itself and to what is kept; imported only where they run.

A program takes one document's chunk with the query heads of one key/value head. The online softmax is FlashAttention's
(Dao et al. 2022, arXiv:2205.14135); since a chunk's keys belong to one program, its backward pass needs no atomics.
"""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# S documents, C rows of a chunk with padding, T = S C, H query heads, G key/value heads, K head dimension, N ring

LOG2E = tl.constexpr(1.4426950408889634)
KEYS = 64


@triton.jit
def _seen(place, start, ring, chunk, window):
    """Whether a place of the ring holds a position that the chunk sees; ``place`` is below ``min(start, ring)``."""
    behind = (start - 1 - place) % ring + 1
    return (place < tl.minimum(start, ring)) & (start - behind >= tl.maximum(start + chunk - window, 0))


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, keys_ptr, values_ptr, out_ptr, lse_ptr, slot_ptr, start_ptr, ring, chunk, window, factor,
    C: tl.constexpr, CP: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, K: tl.constexpr, M: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    document, head = tl.program_id(1), tl.program_id(0)
    start, slot = tl.load(start_ptr + document), tl.load(slot_ptr + document).to(tl.int64)
    column = tl.arange(0, K)[None, :]
    member, own = tl.arange(0, M) // C, tl.arange(0, M) % C
    inside = (member < GROUP)[:, None]
    row = (document * C + own) * (G * GROUP) + head * GROUP + member
    q = tl.load(q_ptr + row.to(tl.int64)[:, None] * K + column, mask=inside, other=0.0)
    top = tl.full((M,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((M,), dtype=tl.float32)
    out = tl.zeros((M, K), dtype=tl.float32)
    for first in range(0, tl.minimum(start, ring), KEYS):
        place = first + tl.arange(0, KEYS)
        seen = _seen(place, start, ring, chunk, window)
        at = ((slot * ring + place)[:, None] * G + head) * K + column
        k = tl.load(keys_ptr + at, mask=seen[:, None], other=0.0)
        scores = tl.where(seen[None, :], tl.dot(q, tl.trans(k)) * factor, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        # A block may hold nothing that is seen.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        v = tl.load(values_ptr + at, mask=seen[:, None], other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None])
        top = higher
    mine = tl.arange(0, CP)
    at = ((document * C + mine).to(tl.int64)[:, None] * G + head) * K + column
    k = tl.load(k_ptr + at, mask=(mine < C)[:, None], other=0.0)
    v = tl.load(v_ptr + at, mask=(mine < C)[:, None], other=0.0)
    scores = tl.where(own[:, None] >= mine[None, :], tl.dot(q, tl.trans(k)) * factor, -float("inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(weights, 1)
    out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None]) / total[:, None]
    tl.store(out_ptr + row.to(tl.int64)[:, None] * K + column, out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + row, higher + tl.log2(total), mask=member < GROUP)


@triton.jit
def _backward_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, keys_ptr, values_ptr, dq_ptr, dk_ptr, dv_ptr, slot_ptr, start_ptr,
    ring, chunk, window, factor, scale,
    C: tl.constexpr, CP: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, K: tl.constexpr, M: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    document, head = tl.program_id(1), tl.program_id(0)
    start, slot = tl.load(start_ptr + document), tl.load(slot_ptr + document).to(tl.int64)
    column = tl.arange(0, K)[None, :]
    member, own = tl.arange(0, M) // C, tl.arange(0, M) % C
    inside = (member < GROUP)[:, None]
    row = (document * C + own) * (G * GROUP) + head * GROUP + member
    at_row = row.to(tl.int64)[:, None] * K + column
    q = tl.load(q_ptr + at_row, mask=inside, other=0.0)
    dout = tl.load(dout_ptr + at_row, mask=inside, other=0.0)
    out = tl.load(out_ptr + at_row, mask=inside, other=0.0)
    lse = tl.load(lse_ptr + row, mask=member < GROUP, other=float("inf"))
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    dq = tl.zeros((M, K), dtype=tl.float32)
    for first in range(0, tl.minimum(start, ring), KEYS):
        place = first + tl.arange(0, KEYS)
        seen = _seen(place, start, ring, chunk, window)
        at = ((slot * ring + place)[:, None] * G + head) * K + column
        k = tl.load(keys_ptr + at, mask=seen[:, None], other=0.0)
        v = tl.load(values_ptr + at, mask=seen[:, None], other=0.0)
        weights = tl.where(seen[None, :], tl.exp2(tl.dot(q, tl.trans(k)) * factor - lse[:, None]), 0.0)
        dscores = weights * (tl.dot(dout, tl.trans(v)) - delta[:, None]) * scale
        dq = tl.dot(dscores.to(k.dtype), k, dq)
    mine = tl.arange(0, CP)
    at = ((document * C + mine).to(tl.int64)[:, None] * G + head) * K + column
    k = tl.load(k_ptr + at, mask=(mine < C)[:, None], other=0.0)
    v = tl.load(v_ptr + at, mask=(mine < C)[:, None], other=0.0)
    seen = (own[:, None] >= mine[None, :]) & inside
    weights = tl.where(seen, tl.exp2(tl.dot(q, tl.trans(k)) * factor - lse[:, None]), 0.0)
    dscores = weights * (tl.dot(dout, tl.trans(v)) - delta[:, None]) * scale
    dq = tl.dot(dscores.to(k.dtype), k, dq)
    dk = tl.dot(tl.trans(dscores.to(q.dtype)), q)
    dv = tl.dot(tl.trans(weights.to(dout.dtype)), dout)
    tl.store(dq_ptr + at_row, dq.to(dq_ptr.dtype.element_ty), mask=inside)
    tl.store(dk_ptr + at, dk.to(dk_ptr.dtype.element_ty), mask=(mine < C)[:, None])
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=(mine < C)[:, None])


def launch(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor, starts: Tensor, chunk: int,
    window: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Result and logarithm of each row's sum of weights, to the base 2; see the facade."""
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    grid, options = _grid(q, k, slots)
    factor = q.shape[-1] ** -0.5 * LOG2E.value
    _forward_kernel[grid](
        q, k, v, keys, values, out, lse, slots, starts, keys.shape[1], chunk, window, factor, **options
    )
    return out, lse


def launch_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, keys: Tensor, values: Tensor,
    slots: Tensor, starts: Tensor, chunk: int, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the chunks' queries, keys and values; see the facade."""
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    grid, options = _grid(q, k, slots)
    scale = q.shape[-1] ** -0.5
    _backward_kernel[grid](
        dout, q, k, v, out, lse, keys, values, dq, dk, dv, slots, starts, keys.shape[1], chunk, window,
        scale * LOG2E.value, scale, **options,
    )  # fmt: skip
    return dq, dk, dv


def _grid(q: Tensor, k: Tensor, slots: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    documents, groups = slots.shape[0], k.shape[1]
    rows, group = q.shape[0] // documents, q.shape[1] // groups
    m = max(16, triton.next_power_of_2(rows * group))
    options = {"C": rows, "CP": max(16, triton.next_power_of_2(rows)), "GROUP": group, "G": groups, "K": q.shape[2]}
    return (groups, documents), options | {"M": m, "KEYS": KEYS, "num_warps": 4 if m <= 64 else 8, "num_stages": 2}
