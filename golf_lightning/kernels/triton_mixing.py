"""Triton kernels of weighted sums of streams and their norms; imported only where they run."""

# Triton takes the types of a kernel's arguments from the call, and its tuples grow while a kernel is traced.
# mypy: disable-error-code="no-untyped-def, assignment, misc"

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# T tokens, D width, N weights, P programs


class Layout(NamedTuple):
    """Where things are: constants of a kernel.

    Attributes:
        values: of each weight the value it multiplies: a stream, or an earlier sum.
        owners: of each weight the sum it belongs to.
        written: of each sum its place among the results, or -1.
        normed: of each sum its norm's place among the results, or -1.
    """

    values: tuple[int, ...]
    owners: tuple[int, ...]
    written: tuple[int, ...]
    normed: tuple[int, ...]


def lay_out(count: int, uses: Sequence[int], written: Sequence[bool], scales: Sequence[float]) -> Layout:
    """The constants for ``count`` streams; see the facade's plan."""
    pairs = [(value, j) for j, mask in enumerate(uses) for value in range(count + j) if mask >> value & 1]
    places: list[int] = []
    for wanted, scale in zip(written, scales, strict=True):
        for there in (wanted, scale != 0):
            places.append(1 + max(places, default=-1) if there else -1)
    return Layout(tuple(v for v, _ in pairs), tuple(j for _, j in pairs), tuple(places[::2]), tuple(places[1::2]))


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
def _load_weights(weights_ptr, column, N: tl.constexpr, WIDTH: tl.constexpr):
    weights = ()
    for n in tl.static_range(N):
        weights = weights + (
            tl.load(weights_ptr + n * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :],
        )
    return weights


@triton.jit
def _mix_kernel(
    streams, weights_ptr, results, scales, tokens, eps,
    VALUES: tl.constexpr, OWNERS: tl.constexpr, WRITTEN: tl.constexpr, NORMED: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    column = tl.arange(0, PADDED)
    inside = (row < tokens) & (column < WIDTH)[None, :]
    at = row * WIDTH + column[None, :]
    weights = _load_weights(weights_ptr, column, len(VALUES), WIDTH)
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
    AGAIN: tl.constexpr, PROGRAMS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = len(streams)
    J: tl.constexpr = len(WRITTEN)
    N: tl.constexpr = len(VALUES)
    column = tl.arange(0, PADDED)
    parts = ()
    for _ in tl.static_range(N):
        parts = parts + (tl.zeros((ROWS, PADDED), dtype=tl.float32),)
    for group in range(tl.program_id(0), tl.cdiv(tokens, ROWS), PROGRAMS):
        row = (group * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
        inside = (row < tokens) & (column < WIDTH)[None, :]
        at = row * WIDTH + column[None, :]
        # Read again for every row: registers are scarcer here than the nearest cache.
        weights = _load_weights(weights_ptr, column, N, WIDTH)
        values = _load_values(streams, weights, at, inside, VALUES, OWNERS, J)
        # Gradients of the sums, the last one first: a sum may be part of later ones.
        slopes = ()
        for i in tl.static_range(J):
            slope = tl.zeros_like(values[0])
            if WRITTEN[J - 1 - i] >= 0:
                slope += tl.load(grads[WRITTEN[J - 1 - i]] + at, mask=inside, other=0.0).to(tl.float32)
            if NORMED[J - 1 - i] >= 0:
                total = values[K + J - 1 - i]
                g = tl.load(grads[NORMED[J - 1 - i]] + at, mask=inside, other=0.0).to(tl.float32) * scales[J - 1 - i]
                square, along = tl.split(tl.sum(tl.join(total * total, g * total), 1))
                inverse = tl.rsqrt(square / WIDTH + eps)
                along *= inverse * inverse / WIDTH
                slope += inverse[:, None] * (g - total * along[:, None])
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
        for n in tl.static_range(N):
            more = more + (parts[n] + slopes[J - 1 - OWNERS[n]] * values[VALUES[n]],)
        parts = more
    for n in tl.static_range(N):
        to = parts_ptr + (tl.program_id(0) * N + n) * WIDTH + column
        tl.store(to, tl.sum(parts[n], 0), mask=column < WIDTH)


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
    streams: Sequence[Tensor], weights_ND: Tensor, uses: Sequence[int], written: Sequence[bool],
    scales: Sequence[float], eps: float,
) -> list[Tensor]:  # fmt: skip
    """Values and norms; see the facade."""
    tokens, width = streams[0].shape
    layout = lay_out(len(streams), uses, written, scales)
    results = [torch.empty_like(streams[0]) for _ in range(1 + max(*layout.written, *layout.normed))]
    rows = 4 if len(streams) < 4 else 2
    if tokens:
        _mix_kernel[(triton.cdiv(tokens, rows),)](
            tuple(streams), weights_ND, tuple(results), tuple(scales), tokens, eps, *layout,
            WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=rows,
        )  # fmt: skip
    return results


def launch_mix_backward(
    grads: Sequence[Tensor], streams: Sequence[Tensor], weights_ND: Tensor, uses: Sequence[int],
    written: Sequence[bool], scales: Sequence[float], again: int, eps: float, programs: int,
    rows: int | None = None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the streams, then that of the weights in one part a program."""
    tokens, width = streams[0].shape
    layout = lay_out(len(streams), uses, written, scales)
    dstreams = [torch.empty_like(x) for x in streams]
    parts = torch.empty(programs, *weights_ND.shape, dtype=torch.float32, device=weights_ND.device)
    if tokens:
        _mix_backward_kernel[(programs,)](
            tuple(grads), tuple(streams), weights_ND, tuple(dstreams), parts, tuple(scales), tokens, eps, *layout,
            AGAIN=again, PROGRAMS=programs, WIDTH=width, PADDED=triton.next_power_of_2(width),
            # Every weight takes registers of the rows.
            ROWS=rows or (4 if weights_ND.shape[0] < 3 else 1), num_warps=2,
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
