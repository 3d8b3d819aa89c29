"""Triton kernels of a layer's entry; imported only where they run."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# T tokens, D width, P programs


@triton.jit
def _mix_kernel(x_ptr, x0_ptr, mix_ptr, u_ptr, n_ptr, tokens, scale, eps,
                WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    column = tl.arange(0, PADDED)[None, :]
    inside = (row < tokens) & (column < WIDTH)
    at = row * WIDTH + column
    m0 = tl.load(mix_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    m1 = tl.load(mix_ptr + WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x0 = tl.load(x0_ptr + at, mask=inside, other=0.0).to(tl.float32)
    u = (m0 * x + m1 * x0).to(u_ptr.dtype.element_ty)
    tl.store(u_ptr + at, u, mask=inside)
    u = u.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(u * u, 1) / WIDTH + eps)[:, None]
    tl.store(n_ptr + at, (u * (inverse * scale)).to(n_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _mix_backward_kernel(du_ptr, dn_ptr, x_ptr, x0_ptr, mix_ptr, dx_ptr, dx0_ptr, parts_ptr, tokens, scale, eps,
                         PROGRAMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
                         ROWS: tl.constexpr):  # fmt: skip
    """Each program walks over every ``PROGRAMS``-th group of rows and keeps its sums over them in registers."""
    column = tl.arange(0, PADDED)[None, :]
    m0 = tl.load(mix_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    m1 = tl.load(mix_ptr + WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    sum0 = tl.zeros((ROWS, PADDED), dtype=tl.float32)
    sum1 = tl.zeros((ROWS, PADDED), dtype=tl.float32)
    for group in range(tl.program_id(0), tl.cdiv(tokens, ROWS), PROGRAMS):
        row = (group * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
        inside = (row < tokens) & (column < WIDTH)
        at = row * WIDTH + column
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x0 = tl.load(x0_ptr + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(dn_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale
        du = tl.load(du_ptr + at, mask=inside, other=0.0).to(tl.float32)
        u = (m0 * x + m1 * x0).to(x_ptr.dtype.element_ty).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(u * u, 1) / WIDTH + eps)[:, None]
        u *= inverse
        du += inverse * (g - u * (tl.sum(g * u, 1) / WIDTH)[:, None])
        tl.store(dx_ptr + at, (m0 * du).to(dx_ptr.dtype.element_ty), mask=inside)
        tl.store(dx0_ptr + at, (m1 * du).to(dx0_ptr.dtype.element_ty), mask=inside)
        sum0 += du * x
        sum1 += du * x0
    out = parts_ptr + tl.program_id(0) * 2 * WIDTH + tl.arange(0, PADDED)
    tl.store(out, tl.sum(sum0, 0), mask=tl.arange(0, PADDED) < WIDTH)
    tl.store(out + WIDTH, tl.sum(sum1, 0), mask=tl.arange(0, PADDED) < WIDTH)


def launch_mix(x_TD: Tensor, x0_TD: Tensor, mix_2D: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """Mixed and normalized stream; see the facade."""
    tokens, width = x_TD.shape
    u, n = torch.empty_like(x_TD), torch.empty_like(x_TD)
    rows = 4
    if tokens:
        _mix_kernel[(triton.cdiv(tokens, rows),)](
            x_TD, x0_TD, mix_2D, u, n, tokens, scale, eps,
            WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=rows,
        )  # fmt: skip
    return u, n


def launch_mix_backward(
    du_TD: Tensor, dn_TD: Tensor, x_TD: Tensor, x0_TD: Tensor, mix_2D: Tensor, scale: float, eps: float, programs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and x0, and that of the mix in one part a program."""
    tokens, width = x_TD.shape
    dx, dx0 = torch.empty_like(x_TD), torch.empty_like(x_TD)
    parts = torch.empty(programs, 2, width, dtype=torch.float32, device=x_TD.device)
    if tokens:
        _mix_backward_kernel[(programs,)](
            du_TD, dn_TD, x_TD, x0_TD, mix_2D, dx, dx0, parts, tokens, scale, eps,
            PROGRAMS=programs, WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=4, num_warps=2,
        )  # fmt: skip
    return dx, dx0, parts
