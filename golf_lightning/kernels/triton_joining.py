"""Triton kernels of weighted sums with their norms; imported only where they run."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# T tokens, D width, N terms

ROWS = 4


@triton.jit
def _weighted(x, w_ptr, term, column, w_row, w_column, WIDTH: tl.constexpr):
    if w_ptr is not None:
        at = w_ptr + term * w_row + column * w_column
        x = x * tl.load(at, mask=column < WIDTH, other=0.0).to(tl.float32)
    return x


@triton.jit
def _plus(total, x_ptr, at, inside):
    if x_ptr is not None:
        total = total + tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["tokens"])
def _join_kernel(
    x0_ptr, x1_ptr, x2_ptr, w_ptr, u_ptr, n_ptr, tokens, scale, eps, w_row, w_column,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    column = tl.arange(0, PADDED)[None, :]
    inside = (row < tokens) & (column < WIDTH)
    at = row * WIDTH + column
    nothing = tl.zeros((ROWS, PADDED), dtype=tl.float32)
    u = _weighted(_plus(nothing, x0_ptr, at, inside), w_ptr, 0, column, w_row, w_column, WIDTH)
    if x1_ptr is not None:
        u += _weighted(_plus(nothing, x1_ptr, at, inside), w_ptr, 1, column, w_row, w_column, WIDTH)
    if x2_ptr is not None:
        u += _weighted(_plus(nothing, x2_ptr, at, inside), w_ptr, 2, column, w_row, w_column, WIDTH)
    rounded = u.to(u_ptr.dtype.element_ty)
    tl.store(u_ptr + at, rounded, mask=inside)
    if n_ptr is not None:
        u = rounded.to(tl.float32)
        inverse = tl.rsqrt(tl.sum(u * u, 1) / WIDTH + eps)[:, None]
        tl.store(n_ptr + at, (u * (inverse * scale)).to(n_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _join_backward_kernel(
    du_ptr, dn0_ptr, dn1_ptr, dn2_ptr, u_ptr, w_ptr, dx0_ptr, dx1_ptr, dx2_ptr, tokens, scale, eps, w_row, w_column,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    column = tl.arange(0, PADDED)[None, :]
    inside = (row < tokens) & (column < WIDTH)
    at = row * WIDTH + column
    nothing = tl.zeros((ROWS, PADDED), dtype=tl.float32)
    total = _plus(nothing, du_ptr, at, inside)
    if dn0_ptr is not None:
        g = _plus(_plus(_plus(nothing, dn0_ptr, at, inside), dn1_ptr, at, inside), dn2_ptr, at, inside) * scale
        u = tl.load(u_ptr + at, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(u * u, 1) / WIDTH + eps)[:, None]
        u *= inverse
        total += inverse * (g - u * (tl.sum(g * u, 1) / WIDTH)[:, None])
    type = u_ptr.dtype.element_ty
    if dx0_ptr is not None:
        dx = _weighted(total, w_ptr, 0, column, w_row, w_column, WIDTH)
        tl.store(dx0_ptr + at, dx.to(type), mask=inside)
    if dx1_ptr is not None:
        dx = _weighted(total, w_ptr, 1, column, w_row, w_column, WIDTH)
        tl.store(dx1_ptr + at, dx.to(type), mask=inside)
    if dx2_ptr is not None:
        dx = _weighted(total, w_ptr, 2, column, w_row, w_column, WIDTH)
        tl.store(dx2_ptr + at, dx.to(type), mask=inside)


def launch_join(
    terms: Sequence[Tensor], weights: Tensor | None, scale: float, norm: bool, eps: float
) -> tuple[Tensor, Tensor | None]:
    """The sum, and its norm if that is wanted; see the facade."""
    u = torch.empty_like(terms[0])
    n = torch.empty_like(u) if norm else None
    grid, shape, strides = _layout(u, weights)
    _join_kernel[grid](*_three(terms), weights, u, n, u.shape[0], scale, eps, *strides, **shape)
    return u, n


def launch_join_backward(
    du: Tensor | None, dn: Sequence[Tensor], u: Tensor, weights: Tensor | None, scale: float, wanted: Sequence[bool],
    eps: float,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the wanted terms; see the facade."""
    wanted = wanted if weights is not None else [True]
    dx = [torch.empty_like(u) if want else None for want in wanted]
    grid, shape, strides = _layout(u, weights)
    _join_backward_kernel[grid](
        du, *_three(dn), u, weights, *_three(dx), u.shape[0], scale, eps, *strides, **shape
    )  # fmt: skip
    return [part for part in dx if part is not None]


def _three(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [*tensors, *[None] * (3 - len(tensors))]


def _layout(u_TD: Tensor, weights: Tensor | None) -> tuple[tuple[int], dict[str, int], tuple[int, int]]:
    tokens, width = u_TD.shape
    shape = {"WIDTH": width, "PADDED": triton.next_power_of_2(width), "ROWS": ROWS}
    strides = (0, 0)
    if weights is not None:
        strides = (weights.stride(0), weights.stride(1) if weights.shape[1] > 1 else 0)
    return (triton.cdiv(tokens, ROWS),), shape, strides
