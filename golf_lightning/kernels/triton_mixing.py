"""Triton kernels of weighted sums of streams and their norms; imported only where they run."""

# Triton takes the types of a kernel's arguments from the call, and its tuples grow while a kernel is traced.
# mypy: disable-error-code="no-untyped-def, assignment, misc, var-annotated"

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# T tokens, D width, W all numbers of the weights, P programs


class Layout(NamedTuple):
    """Where things are: constants of a kernel.

    Attributes:
        values: of each weight the value it multiplies: a stream, or an earlier sum.
        owners: of each weight the sum it belongs to.
        written: of each sum its place among the results, or -1.
        normed: of each sum its norm's place among the results, or -1.
        places: of each weight its place among those given, or -1.
        columns: how many of those have a number a column.
    """

    values: tuple[int, ...]
    owners: tuple[int, ...]
    written: tuple[int, ...]
    normed: tuple[int, ...]
    places: tuple[int, ...]
    columns: int


def lay_out(
    count: int, places: Sequence[int], columns: int, uses: Sequence[int], written: Sequence[bool],
    scales: Sequence[float],
) -> Layout:  # fmt: skip
    """The constants for ``count`` streams; see the facade's plan."""
    pairs = [(value, j) for j, mask in enumerate(uses) for value in range(count + j) if mask >> value & 1]
    results: list[int] = []
    for wanted, scale in zip(written, scales, strict=True):
        for there in (wanted, scale != 0):
            results.append(1 + max(results, default=-1) if there else -1)
    values, owners = zip(*pairs, strict=True)
    return Layout(values, owners, tuple(results[::2]), tuple(results[1::2]), tuple(places), columns)


@triton.jit
def _load_values(streams, weights, at, inside, VALUES: tl.constexpr, OWNERS: tl.constexpr, SUMS: tl.constexpr):
    values = ()
    for k in tl.static_range(len(streams)):
        values = values + (tl.load(streams[k] + at, mask=inside, other=0.0).to(tl.float32),)
    for j in tl.static_range(SUMS):
        total = tl.zeros_like(values[0])
        for n in tl.static_range(len(VALUES)):
            if OWNERS[n] == j:
                total += weights[n] * values[VALUES[n]]
        values = values + (total,)
    return values


@triton.jit
def _load_weights(weights_ptr, column, PLACES: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    weights = ()
    for n in tl.static_range(len(PLACES)):
        if PLACES[n] < 0:
            weights = weights + (1.0,)
        elif PLACES[n] < COLUMNS:
            at = PLACES[n] * WIDTH + column[None, :]
            inside = (column < WIDTH)[None, :]
            weights = weights + (tl.load(weights_ptr + at, mask=inside, other=0.0).to(tl.float32),)
        else:
            weights = weights + (tl.load(weights_ptr + COLUMNS * (WIDTH - 1) + PLACES[n]).to(tl.float32),)
    return weights


@triton.jit
def _mix_kernel(
    streams, weights_ptr, results, scales, tokens, eps,
    VALUES: tl.constexpr, OWNERS: tl.constexpr, WRITTEN: tl.constexpr, NORMED: tl.constexpr,
    PLACES: tl.constexpr, COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    column = tl.arange(0, PADDED)
    inside = (row < tokens) & (column < WIDTH)[None, :]
    at = row * WIDTH + column[None, :]
    weights = _load_weights(weights_ptr, column, PLACES, COLUMNS, WIDTH)
    values = _load_values(streams, weights, at, inside, VALUES, OWNERS, len(WRITTEN))
    for j in tl.static_range(len(WRITTEN)):
        total = values[len(streams) + j]
        if WRITTEN[j] >= 0:
            tl.store(results[WRITTEN[j]] + at, total.to(results[0].dtype.element_ty), mask=inside)
        if NORMED[j] >= 0:
            factor = scales[j] * tl.rsqrt(tl.sum(total * total, 1) / WIDTH + eps)[:, None]
            tl.store(results[NORMED[j]] + at, (total * factor).to(results[0].dtype.element_ty), mask=inside)


@triton.jit
def _mix_backward_kernel(
    grads, streams, weights_ptr, dstreams, parts_ptr, scales, tokens, eps,
    VALUES: tl.constexpr, OWNERS: tl.constexpr, WRITTEN: tl.constexpr, NORMED: tl.constexpr,
    PLACES: tl.constexpr, COLUMNS: tl.constexpr,
    AGAIN: tl.constexpr, PROGRAMS: tl.constexpr, GIVEN: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = len(streams)
    J: tl.constexpr = len(WRITTEN)
    N: tl.constexpr = len(VALUES)
    # Columns that a thread holds side by side.
    SIDE: tl.constexpr = 8 if PADDED >= 8 else PADDED
    column = tl.arange(0, PADDED)
    parts = ()
    for p in tl.static_range(GIVEN):
        parts = parts + (tl.zeros((ROWS, PADDED if p < COLUMNS else PADDED // SIDE), dtype=tl.float32),)
    for group in range(tl.program_id(0), tl.cdiv(tokens, ROWS), PROGRAMS):
        row = (group * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
        inside = ((row < tokens) | (ROWS == 1)) & (column < WIDTH)[None, :]
        at = row * WIDTH + column[None, :]
        # All that is far away is asked for before the first sum over a row makes the program wait.
        given = ()
        for k in tl.static_range(len(grads) - (AGAIN >= 0)):
            given = given + (tl.load(grads[k] + at, mask=inside, other=0.0),)
        # Read again for every row: registers are scarcer here than the nearest cache.
        weights = _load_weights(weights_ptr, column, PLACES, COLUMNS, WIDTH)
        values = _load_values(streams, weights, at, inside, VALUES, OWNERS, J)
        # Gradients of the sums, the last one first: a sum may be part of later ones.
        slopes = ()
        for i in tl.static_range(J):
            slope = tl.zeros_like(values[0])
            if WRITTEN[J - 1 - i] >= 0:
                slope += given[WRITTEN[J - 1 - i]].to(tl.float32)
            if NORMED[J - 1 - i] >= 0:
                total = values[K + J - 1 - i]
                g = given[NORMED[J - 1 - i]].to(tl.float32)
                square, along = tl.split(tl.sum(tl.join(total * total, g * total), 1))
                inverse = tl.rsqrt(square / WIDTH + eps)
                along *= inverse * inverse / WIDTH
                inverse *= scales[J - 1 - i]
                # Apart, for that is a multiply-add each.
                slope += inverse[:, None] * g
                slope -= (inverse * along)[:, None] * total
            for n in tl.static_range(N):
                if VALUES[n] == K + J - 1 - i:
                    slope += weights[n] * slopes[J - 1 - OWNERS[n]]
            slopes = slopes + (slope,)
        for k in tl.static_range(K):
            slope = tl.zeros_like(values[0])
            if k == AGAIN:
                slope += tl.load(grads[len(grads) - 1] + at, mask=inside, other=0.0).to(tl.float32)
            for n in tl.static_range(N):
                if VALUES[n] == k:
                    slope += weights[n] * slopes[J - 1 - OWNERS[n]]
            tl.store(dstreams[k] + at, slope.to(dstreams[0].dtype.element_ty), mask=inside)
        more = ()
        for p in tl.static_range(GIVEN):
            for n in tl.static_range(N):
                if PLACES[n] == p:
                    along = slopes[J - 1 - OWNERS[n]] * values[VALUES[n]]
                    if p >= COLUMNS:
                        # One number: what a thread holds is added there, and over threads only at the end.
                        along = tl.sum(tl.reshape(along, (ROWS, PADDED // SIDE, SIDE)), 2)
                    more = more + (parts[p] + along,)
        parts = more
    to = parts_ptr + tl.program_id(0) * (COLUMNS * (WIDTH - 1) + GIVEN)
    for p in tl.static_range(GIVEN):
        if p < COLUMNS:
            tl.store(to + p * WIDTH + column, tl.sum(parts[p], 0), mask=column < WIDTH)
        else:
            tl.store(to + COLUMNS * (WIDTH - 1) + p, tl.sum(parts[p]))


@triton.jit
def _norm_kernel(
    x_ptr, n_ptr, inverse_ptr, tokens, scale, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, PADDED)[None, :]
    inside = (row < tokens)[:, None] & (column < WIDTH)
    at = row[:, None] * WIDTH + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)
    tl.store(inverse_ptr + row, inverse, mask=row < tokens)
    tl.store(n_ptr + at, (x * (scale * inverse[:, None])).to(n_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward_kernel(
    dn_ptr, dx_ptr, n_ptr, inverse_ptr, out_ptr, tokens, scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, PADDED)[None, :]
    inside = (row < tokens)[:, None] & (column < WIDTH)
    at = row[:, None] * WIDTH + column
    n = tl.load(n_ptr + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dn_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dx = tl.load(dx_ptr + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.load(inverse_ptr + row, mask=row < tokens, other=0.0)[:, None]
    along = tl.sum(n * g, 1)[:, None] / (WIDTH * scale)
    tl.store(out_ptr + at, (dx + inverse * (scale * g - n * along)).to(out_ptr.dtype.element_ty), mask=inside)


def launch_mix(
    streams: Sequence[Tensor], weights_W: Tensor, places: Sequence[int], columns: int, uses: Sequence[int],
    written: Sequence[bool], scales: Sequence[float], eps: float,
) -> list[Tensor]:  # fmt: skip
    """Values and norms; see the facade."""
    tokens, width = streams[0].shape
    layout = lay_out(len(streams), places, columns, uses, written, scales)
    results = [torch.empty_like(streams[0]) for _ in range(1 + max(*layout.written, *layout.normed))]
    rows = 4 if len(streams) < 4 else 2
    if tokens:
        _mix_kernel[(triton.cdiv(tokens, rows),)](
            tuple(streams), weights_W, tuple(results), tuple(scales), tokens, eps, *layout,
            WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=rows,
        )  # fmt: skip
    return results


def launch_mix_backward(
    grads: Sequence[Tensor], streams: Sequence[Tensor], weights_W: Tensor, places: Sequence[int], columns: int,
    uses: Sequence[int], written: Sequence[bool], scales: Sequence[float], again: int, eps: float, programs: int,
    rows: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the streams, then that of the weights in one part a program."""
    tokens, width = streams[0].shape
    layout = lay_out(len(streams), places, columns, uses, written, scales)
    dstreams = [torch.empty_like(x) for x in streams]
    parts = torch.empty(programs, len(weights_W), dtype=torch.float32, device=weights_W.device)
    if tokens:
        _mix_backward_kernel[(programs,)](
            tuple(grads), tuple(streams), weights_W, tuple(dstreams), parts, tuple(scales), tokens, eps, *layout,
            AGAIN=again, PROGRAMS=programs, GIVEN=1 + max(places),
            WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=rows, num_warps=2,
        )  # fmt: skip
    return [*dstreams, parts]


def launch_norm(x_TD: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """Norm and inverse root mean square; see the facade."""
    tokens, width = x_TD.shape
    n, inverse = torch.empty_like(x_TD), torch.empty(tokens, dtype=torch.float32, device=x_TD.device)
    if tokens:
        _norm_kernel[(triton.cdiv(tokens, 4),)](
            x_TD, n, inverse, tokens, scale, eps, WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=4
        )
    return n, inverse


def launch_norm_backward(dn_TD: Tensor, dx_TD: Tensor, n_TD: Tensor, inverse_T: Tensor, scale: float) -> Tensor:
    """Both gradients of what was normalized, added; see the facade."""
    tokens, width = n_TD.shape
    out = torch.empty_like(n_TD)
    if tokens:
        _norm_backward_kernel[(triton.cdiv(tokens, 4),)](
            dn_TD, dx_TD, n_TD, inverse_T, out, tokens, scale,
            WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=4,
        )  # fmt: skip
    return out
