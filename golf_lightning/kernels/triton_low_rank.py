"""Triton kernels of the low-rank products; imported only where they run."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from golf_lightning.kernels.triton_low_rank_step import launch_gradients, padded, padded_sites

if TYPE_CHECKING:
    from golf_lightning.kernels.low_rank import Learner, RowSlots

# T rows, D inputs, O outputs, P slots, S segments, r rank, R = r times adapters in the call


class Blocks(NamedTuple):
    """Columns of a program's output, depth of one step, warps, stages."""

    columns: int = 128
    depth: int = 64
    warps: int = 4
    stages: int = 3


@triton.jit
def _product_kernel(
    x_ptr, w_ptr, y_ptr, base_ptr, scale_ptr, span_ptr, empty, outputs, inputs, x_row, y_row, w_slot, w_output, w_input,
    alpha, rank, begin0, end0, begin1, end1, begin2, end2,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A span of rows times its slot's matrix.

    ``up`` takes each site's inner values to its columns, onto a base; ``back`` takes each site's columns to its inner
    values; scales belong to the columns in both.
    """
    span = span_ptr + tl.program_id(1) * 3
    first, end, slot = tl.load(span), tl.load(span + 1), tl.load(span + 2)
    if first >= end:
        return
    block = tl.program_id(0)
    if KIND == "up":
        blocks0, blocks1 = tl.cdiv(end0 - begin0, COLUMNS), tl.cdiv(end1 - begin1, COLUMNS)
        site = (block >= blocks0).to(tl.int32) + (block >= blocks0 + blocks1).to(tl.int32)
        block -= tl.where(site == 0, 0, tl.where(site == 1, blocks0, blocks0 + blocks1))
    if KIND == "back":
        site = block // tl.cdiv(rank, COLUMNS)
        block %= tl.cdiv(rank, COLUMNS)
    if KIND != "plain":
        begin = tl.where(site == 0, begin0, tl.where(site == 1, begin1, begin2))
        width = tl.where(site == 0, end0 - begin0, tl.where(site == 1, end1 - begin1, end2 - begin2))
        above = tl.where(site == 0, 0, tl.where(site == 1, end0 - begin0, end0 - begin0 + end1 - begin1))
        if scale_ptr is not None:
            scale_ptr += begin
        if KIND == "up":
            x_ptr += site * rank
            y_ptr += begin
            base_ptr += begin
            w_ptr += above * w_output
            inputs, outputs = rank, width
        else:
            x_ptr += begin
            y_ptr += site * rank
            w_ptr += above * w_input
            inputs, outputs = width, rank
    row = (first + tl.arange(0, ROWS))[:, None]
    there = row < end
    row = row.to(tl.int64)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < outputs
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    if slot != empty:
        w = w_ptr + slot.to(tl.int64) * w_slot + column[None, :] * w_output
        for start in range(0, inputs, DEPTH):
            k = start + tl.arange(0, DEPTH)
            x = tl.load(x_ptr + row * x_row + k[None, :], mask=there & (k[None, :] < inputs), other=0.0)
            if KIND == "back" and scale_ptr is not None:
                scale = tl.load(scale_ptr + k, mask=k < inputs, other=0.0)
                x = (x * scale[None, :]).to(x_ptr.dtype.element_ty)
            of_w = tl.load(w + k[:, None] * w_input, mask=inside[None, :] & (k[:, None] < inputs), other=0.0)
            total = tl.dot(x, of_w, total)
    total *= alpha
    if KIND == "up":
        if scale_ptr is not None:
            total *= tl.load(scale_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        base = tl.load(base_ptr + row * y_row + column[None, :], mask=there & inside[None, :], other=0.0)
        total += base.to(tl.float32)
    tl.store(y_ptr + row * y_row + column[None, :], total.to(y_ptr.dtype.element_ty), mask=there & inside[None, :])


def launch_forward(
    base_TO: Tensor, x_TD: Tensor, a_PRD: Tensor, b_POr: Tensor, scale_O: Tensor | None, rows: RowSlots,
    flat: Sequence[int], alpha: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result ``[T, O]`` and the inner values ``[T, R]``; see the facade."""
    h_TR = x_TD.new_empty(x_TD.shape[0], a_PRD.shape[1])
    _product("plain", x_TD, a_PRD, h_TR, rows, alpha=alpha)
    written = sum(flat[1::2]) - sum(flat[::2])
    out_TO = torch.empty_like(base_TO) if written == base_TO.shape[1] else base_TO.clone()
    _product("up", h_TR, b_POr, out_TO, rows, flat=flat, base=base_TO, scale=scale_O)
    return out_TO, h_TR


def launch_backward(
    dout_TO: Tensor, x_TD: Tensor, h_TR: Tensor, a_PRD: Tensor, b_POr: Tensor, scale_O: Tensor | None, rows: RowSlots,
    flat: Sequence[int], alpha: float, *, learner: Learner | None, want_dx: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x, A and B, those that are wanted; see the facade."""
    g_TR = torch.empty_like(h_TR)
    _product("back", dout_TO, b_POr.transpose(1, 2), g_TR, rows, flat=flat, scale=scale_O, alpha=alpha)
    dx_TD = torch.empty_like(x_TD) if want_dx else None
    if dx_TD is not None:
        _product("plain", g_TR, a_PRD.transpose(1, 2), dx_TD, rows)
    da_PRD, db_POr = (torch.empty_like(w) if learner is None else None for w in (a_PRD, b_POr))

    def use() -> None:
        launch_gradients(dout_TO, h_TR, g_TR, x_TD, scale_O, rows, flat, b_POr, da_PRD, db_POr, learner)

    # The step comes last: it changes what the products read.
    if learner is None or learner.learning.aside is None:
        use()
    else:
        learner.learning.aside.run(use, dout_TO, h_TR, g_TR, x_TD)
    return dx_TD, da_PRD, db_POr


def _product(
    kind: str, x: Tensor, w_PNK: Tensor, y: Tensor, rows: RowSlots, *, flat: Sequence[int] = (), alpha: float = 1.0,
    base: Tensor | None = None, scale: Tensor | None = None, blocks: Blocks | None = None,
) -> None:  # fmt: skip
    slots, outputs, inputs = w_PNK.shape
    # A few rows leave a wait for the matrix, so all of a program's share is on its way at once; many rows want to
    # read it seldom. Adding to a base is traffic, which wants programs small enough to overlap.
    narrow = kind == "up" or rows.span < 64
    blocks = blocks or Blocks(columns=64 if narrow else 128, depth=128 if rows.span < 64 else 64)
    columns, depth, rank = blocks.columns, blocks.depth, inputs if kind == "up" else outputs
    ends = list(zip(flat[::2], flat[1::2], strict=True))
    widest = max(end - begin for begin, end in ends) if kind == "up" else outputs
    columns = min(columns, padded(widest))
    across = triton.cdiv(outputs, columns) * (len(ends) if kind == "back" else 1)
    if kind == "up":
        across = sum(triton.cdiv(end - begin, columns) for begin, end in ends)
    if rows.span >= 64 and kind != "back" and inputs % depth:
        depth = 32
    _product_kernel[(across, rows.spans.shape[0])](
        x, w_PNK, y, base, scale, rows.spans, slots - 1, outputs, inputs, x.stride(0), y.stride(0), *w_PNK.stride(),
        alpha, rank, *padded_sites(flat),
        KIND=kind, ROWS=padded(rows.span), COLUMNS=columns, DEPTH=depth,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
