"""Triton kernels of the low-rank products; imported only where they run."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from golf_lightning.kernels.low_rank import sites

# T rows, D inputs, O outputs, P slots, S segments, I tiles, r rank, R = r times adapters in the call


@triton.jit
def _product_kernel(
    x_ptr, w_ptr, y_ptr, base_ptr, scale_ptr, slot_ptr, empty, outputs, inputs, x_row, y_row, base_row,
    w_slot, w_output, w_input, alpha,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BASE: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """One tile of rows times its slot's matrix; ``SCALED`` 1 scales the outputs, 2 the inputs, 0 neither."""
    tile = tl.program_id(1)
    slot = tl.load(slot_ptr + tile)
    row = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < outputs
    total = tl.zeros((TILE, COLUMNS), dtype=tl.float32)
    if slot != empty:
        w_ptr += slot.to(tl.int64) * w_slot
        for start in range(0, inputs, DEPTH):
            k = start + tl.arange(0, DEPTH)
            x = tl.load(x_ptr + row * x_row + k[None, :], mask=k[None, :] < inputs, other=0.0)
            if SCALED == 2:
                x = (x * tl.load(scale_ptr + k, mask=k < inputs, other=0.0)[None, :]).to(x_ptr.dtype.element_ty)
            w = tl.load(
                w_ptr + column[None, :] * w_output + k[:, None] * w_input,
                mask=inside[None, :] & (k[:, None] < inputs), other=0.0,
            )  # fmt: skip
            total = tl.dot(x, w, total)
        total *= alpha
        if SCALED == 1:
            total *= tl.load(scale_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if BASE:
        total += tl.load(base_ptr + row * base_row + column[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
    tl.store(y_ptr + row * y_row + column[None, :], total.to(y_ptr.dtype.element_ty), mask=inside[None, :])


@triton.jit
def _outer_kernel(
    a_ptr, b_ptr, out_ptr, scale_ptr, bound_ptr, slot_ptr, empty, lines, columns, a_row, b_row, out_slot, out_line,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """``a^T b`` over the rows of one segment, into its slot's place; ``SCALED`` scales each line."""
    segment = tl.program_id(2)
    slot = tl.load(slot_ptr + segment)
    if slot == empty:
        return
    line = tl.program_id(1) * LINES + tl.arange(0, LINES)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((LINES, COLUMNS), dtype=tl.float32)
    for start in range(tl.load(bound_ptr + segment), tl.load(bound_ptr + segment + 1), ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        a = tl.load(a_ptr + row * a_row + line[None, :], mask=line[None, :] < lines, other=0.0)
        b = tl.load(b_ptr + row * b_row + column[None, :], mask=column[None, :] < columns, other=0.0)
        total = tl.dot(tl.trans(a), b, total)
    if SCALED:
        total *= tl.load(scale_ptr + line, mask=line < lines, other=0.0).to(tl.float32)[:, None]
    place = slot.to(tl.int64) * out_slot + line.to(tl.int64)[:, None] * out_line + column[None, :]
    tl.store(
        out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=(line[:, None] < lines) & (column[None, :] < columns)
    )


def launch_forward(
    base_TO: Tensor, x_TD: Tensor, a_PRD: Tensor, b_POr: Tensor, scale_O: Tensor | None, tiles_I: Tensor,
    flat: Sequence[int], alpha: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result ``[T, O]`` and the inner values ``[T, R]``; see the facade."""
    h_TR = x_TD.new_empty(x_TD.shape[0], a_PRD.shape[1])
    _product(x_TD, a_PRD, h_TR, tiles_I, alpha=alpha)
    parts = sites(flat, b_POr.shape[2])
    written = sum(out.stop - out.start for out, _, _ in parts)
    out_TO = torch.empty_like(base_TO) if written == base_TO.shape[1] else base_TO.clone()
    for out, inner, rows in parts:
        scale = None if scale_O is None else scale_O[out]
        _product(h_TR[:, inner], b_POr[:, rows], out_TO[:, out], tiles_I, base=base_TO[:, out], output_scale=scale)
    return out_TO, h_TR


def launch_backward(
    dout_TO: Tensor, x_TD: Tensor, h_TR: Tensor, a_PRD: Tensor, b_POr: Tensor, scale_O: Tensor | None,
    tiles_I: Tensor, bounds: Tensor, learners_S: Tensor, flat: Sequence[int], alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, A and B; see the facade."""
    g_TR, dx_TD = torch.empty_like(h_TR), torch.empty_like(x_TD)
    da_PRD, db_POr = torch.empty_like(a_PRD), torch.empty_like(b_POr)
    tile = x_TD.shape[0] // tiles_I.shape[0]
    for out, inner, rows in sites(flat, b_POr.shape[2]):
        scale = None if scale_O is None else scale_O[out]
        b_PrO = b_POr[:, rows].transpose(1, 2)
        _product(dout_TO[:, out], b_PrO, g_TR[:, inner], tiles_I, alpha=alpha, input_scale=scale)
        _outer(dout_TO[:, out], h_TR[:, inner], db_POr[:, rows], bounds, learners_S, tile, scale)
    _product(g_TR, a_PRD.transpose(1, 2), dx_TD, tiles_I)
    _outer(g_TR, x_TD, da_PRD, bounds, learners_S, tile, None)
    return dx_TD, da_PRD, db_POr


def _product(
    x: Tensor, w_PNK: Tensor, y: Tensor, tiles_I: Tensor, *, alpha: float = 1.0, base: Tensor | None = None,
    output_scale: Tensor | None = None, input_scale: Tensor | None = None, columns: int = 128, depth: int = 64,
    warps: int = 4, stages: int = 3,
) -> None:  # fmt: skip
    """``y = base + scale_out * alpha * (scale_in * x) w^T`` by tiles; all with unit stride along their rows but w."""
    slots, outputs, inputs = w_PNK.shape
    count = tiles_I.shape[0]
    scale = output_scale if output_scale is not None else input_scale
    columns = min(columns, max(16, triton.next_power_of_2(outputs)))
    depth = min(depth, 32 if inputs % 64 else 64)
    _product_kernel[(triton.cdiv(outputs, columns), count)](
        x, w_PNK, y, base, scale, tiles_I, slots - 1, outputs, inputs, x.stride(0), y.stride(0),
        0 if base is None else base.stride(0), *w_PNK.stride(), alpha,
        TILE=x.shape[0] // count, COLUMNS=columns, DEPTH=depth, BASE=base is not None,
        SCALED=0 if scale is None else (1 if output_scale is not None else 2), num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _outer(
    a_TM: Tensor, b_TN: Tensor, out_PMN: Tensor, bounds: Tensor, slots_S: Tensor, tile: int, scale_M: Tensor | None,
    *, lines: int = 128, columns: int = 128, warps: int = 8, stages: int = 3,
) -> None:  # fmt: skip
    """``out[slot] = scale * a^T b`` over each segment's rows."""
    slots, height, width = out_PMN.shape
    lines, columns = (min(most, max(16, triton.next_power_of_2(n))) for most, n in ((lines, height), (columns, width)))
    _outer_kernel[(triton.cdiv(width, columns), triton.cdiv(height, lines), slots_S.shape[0])](
        a_TM, b_TN, out_PMN, scale_M, bounds, slots_S, slots - 1, height, width, a_TM.stride(0), b_TN.stride(0),
        out_PMN.stride(0), out_PMN.stride(1),
        LINES=lines, COLUMNS=columns, ROWS=tile, SCALED=scale_M is not None, num_warps=warps, num_stages=stages,
    )  # fmt: skip
