"""Triton kernel of the gradients of low-rank matrices and the step that these take; imported only where it runs."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from golf_lightning.kernels.low_rank import Learner, RowSlots

# T rows, D inputs, O outputs, P slots, S segments, r rank, R = r times adapters in the call


@triton.jit
def _outer(
    a_ptr, b_ptr, scale_ptr, a_row, b_row, begin, end, line, column, lines, columns,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``a^T b`` over some rows; a scale belongs to the lines."""
    total = tl.zeros((LINES, COLUMNS), dtype=tl.float32)
    for start in range(begin, end, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        a = tl.load(a_ptr + row * a_row + line[None, :], mask=(row < end) & (line[None, :] < lines), other=0.0)
        b = tl.load(b_ptr + row * b_row + column[None, :], mask=(row < end) & (column[None, :] < columns), other=0.0)
        total = tl.dot(tl.trans(a), b, total)
    if scale_ptr is not None:
        total *= tl.load(scale_ptr + line, mask=line < lines, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit
def _use(
    grad, of_slot, at, inside, grad_ptr, value_ptr, used_ptr, first_ptr, second_ptr, step, root, beta1, beta2, eps,
    shrink,
):  # fmt: skip
    """Write a gradient, or take a step of AdamW by it."""
    if grad_ptr is not None:
        tl.store(grad_ptr + of_slot + at, grad.to(grad_ptr.dtype.element_ty), mask=inside)
    else:
        second = tl.load(second_ptr + of_slot + at, mask=inside, other=0.0)
        second = beta2 * second + (1 - beta2) * grad * grad
        tl.store(second_ptr + of_slot + at, second, mask=inside)
        if first_ptr is not None:
            grad = beta1 * tl.load(first_ptr + of_slot + at, mask=inside, other=0.0) + (1 - beta1) * grad
            tl.store(first_ptr + of_slot + at, grad, mask=inside)
        value = tl.load(value_ptr + of_slot + at, mask=inside, other=0.0)
        value = value * shrink - step * grad / (tl.sqrt(second) / root + eps)
        tl.store(value_ptr + of_slot + at, value, mask=inside)
        if used_ptr is not None:
            tl.store(used_ptr + of_slot + at, value.to(used_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_kernel(
    dout_ptr, h_ptr, g_ptr, x_ptr, scale_ptr, bound_ptr, slot_ptr, empty, outputs, inner, inputs, written, rank,
    da_ptr, a_value, a_used, a_first, a_second, db_ptr, b_value, b_used, b_first, b_second,
    correction_ptr, root_ptr, lr, beta1, beta2, eps, shrink, begin0, end0, begin1, end1, begin2, end2,
    LINES: tl.constexpr, B_COLUMNS: tl.constexpr, A_COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of A and B over the rows of one segment, and what becomes of them in its slot."""
    segment = tl.program_id(1)
    slot = tl.load(slot_ptr + segment).to(tl.int64)
    begin, end = tl.load(bound_ptr + segment), tl.load(bound_ptr + segment + 1)
    if slot == empty:
        return
    step, root = lr, 1.0
    if correction_ptr is not None:
        step, root = lr / tl.load(correction_ptr + segment), tl.load(root_ptr + segment)
    across = tl.cdiv(rank, B_COLUMNS)
    blocks0, blocks1 = tl.cdiv(end0 - begin0, LINES), tl.cdiv(end1 - begin1, LINES)
    of_b = (blocks0 + blocks1 + tl.cdiv(end2 - begin2, LINES)) * across
    block = tl.program_id(0)
    if block < of_b:
        column = (block % across) * B_COLUMNS + tl.arange(0, B_COLUMNS)
        block = block // across
        site = (block >= blocks0).to(tl.int32) + (block >= blocks0 + blocks1).to(tl.int32)
        block -= tl.where(site == 0, 0, tl.where(site == 1, blocks0, blocks0 + blocks1))
        first = tl.where(site == 0, begin0, tl.where(site == 1, begin1, begin2))
        width = tl.where(site == 0, end0 - begin0, tl.where(site == 1, end1 - begin1, end2 - begin2))
        above = tl.where(site == 0, 0, tl.where(site == 1, end0 - begin0, end0 - begin0 + end1 - begin1))
        line = block * LINES + tl.arange(0, LINES)
        if scale_ptr is not None:
            scale_ptr += first
        grad = _outer(
            dout_ptr + first, h_ptr + site * rank, scale_ptr, outputs, inner, begin, end, line, column, width, rank,
            LINES, B_COLUMNS, ROWS,
        )  # fmt: skip
        at = (above + line[:, None]) * rank + column[None, :]
        inside = (line[:, None] < width) & (column[None, :] < rank)
        _use(
            grad, slot * written * rank, at, inside, db_ptr, b_value, b_used, b_first, b_second, step, root, beta1,
            beta2, eps, shrink,
        )  # fmt: skip
    else:
        block -= of_b
        across = tl.cdiv(inputs, A_COLUMNS)
        # Other names than above: a name of both branches must have one shape.
        a_line = (block // across) * LINES + tl.arange(0, LINES)
        a_column = (block % across) * A_COLUMNS + tl.arange(0, A_COLUMNS)
        a_grad = _outer(
            g_ptr, x_ptr, None, inner, inputs, begin, end, a_line, a_column, inner, inputs, LINES, A_COLUMNS, ROWS
        )  # fmt: skip
        a_at = a_line[:, None] * inputs + a_column[None, :]
        a_inside = (a_line[:, None] < inner) & (a_column[None, :] < inputs)
        _use(
            a_grad, slot * inner * inputs, a_at, a_inside, da_ptr, a_value, a_used, a_first, a_second, step, root,
            beta1, beta2, eps, shrink,
        )  # fmt: skip


def padded(size: int) -> int:
    """A block that holds so many; tensor cores want 16 at least."""
    return max(16, triton.next_power_of_2(size))


def padded_sites(flat: Sequence[int]) -> list[int]:
    """First and last-but-one column of three sites; those that there are not have no columns."""
    assert len(flat) <= 6, "at most three adapters in a call"
    return [*flat, *[0] * (6 - len(flat))]


def launch_gradients(
    dout_TO: Tensor, h_TR: Tensor, g_TR: Tensor, x_TD: Tensor, scale_O: Tensor | None, rows: RowSlots,
    flat: Sequence[int], b_POr: Tensor, da_PRD: Tensor | None, db_POr: Tensor | None, learner: Learner | None,
    blocks: tuple[int, int, int, int] | None = None,
) -> None:  # fmt: skip
    """Gradients of A and B into the tensors given, or the learner's step by them.

    ``blocks`` are the most lines and columns of a program's share, its warps and stages.
    """
    lines, most, warps, stages = blocks or (64, 64, 4, 3)
    slots, written, rank = b_POr.shape
    inner, inputs = h_TR.shape[1], x_TD.shape[1]
    a_columns, b_columns = (min(most, padded(n)) for n in (inputs, rank))
    ends = zip(flat[::2], flat[1::2], strict=True)
    of_b = sum(triton.cdiv(end - begin, lines) for begin, end in ends) * triton.cdiv(rank, b_columns)
    of_a = triton.cdiv(inner, lines) * triton.cdiv(inputs, a_columns)
    states: list[Tensor | None] = []
    numbers: list[Tensor | float | None] = [None, None, 0.0, 0.0, 0.0, 0.0, 0.0]
    tensors = (None, None) if learner is None else (learner.a, learner.b)
    for grad, tensor in zip((da_PRD, db_POr), tensors, strict=True):
        states.append(grad)
        if tensor is None:
            states += [None] * 4
        else:
            copy = None if tensor.used is tensor.value else tensor.used
            states += [tensor.value, copy, tensor.first, tensor.second]
    if learner is not None:
        constants = learner.learning.constants
        shrink = 1 - constants.lr * constants.weight_decay
        numbers = [*learner.learning.corrected, constants.lr, constants.beta1, constants.beta2, constants.eps, shrink]
    _gradient_kernel[(of_b + of_a, rows.learners.shape[0])](
        dout_TO, h_TR, g_TR, x_TD, scale_O, rows.bounds, rows.learners, slots - 1, dout_TO.shape[1], inner, inputs,
        written, rank, *states, *numbers, *padded_sites(flat),
        LINES=lines, B_COLUMNS=b_columns, A_COLUMNS=a_columns, ROWS=min(64, padded(rows.span)), num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
