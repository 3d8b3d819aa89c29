"""The trellis search as one Triton kernel; imported only where it runs. A program walks down a block of paths."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# P paths, L rows of a path

PATHS = 32


@triton.jit
def _lattice(x, offset: tl.constexpr, highest: tl.constexpr):
    level = 4.0 * tl.floor((x - offset) / 4.0 + 0.5) + offset
    return tl.minimum(tl.maximum(level, -highest), highest)


@triton.jit
def _mirrored(x, offset: tl.constexpr, highest: tl.constexpr, ZERO: tl.constexpr):
    magnitude = tl.abs(x)
    level = 4.0 * tl.floor((magnitude - offset) / 4.0 + 0.5) + offset
    level = tl.minimum(tl.maximum(level, offset), highest)
    if ZERO:
        level = tl.where(magnitude < 1.5, 0.0, level)
    return tl.where(x < 0, -level, level)


@triton.jit
def _search_kernel(
    target, levels, branches, paths, LENGTH: tl.constexpr,
    TOP0: tl.constexpr, TOP1: tl.constexpr, TOP2: tl.constexpr, TOP3: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    path = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = path < paths
    at = path.to(tl.int64) * LENGTH
    far = tl.full((BLOCK,), float("inf"), tl.float32)
    c0 = tl.zeros((BLOCK,), tl.float32)
    c1, c2, c3, c4, c5, c6, c7 = far, far, far, far, far, far, far
    for t in range(LENGTH):
        x = tl.load(target + at + t, mask=mask, other=0.0)
        d0, d1 = x - _lattice(x, 0, TOP0), x - _lattice(x, 2, TOP1)
        d2, d3 = x - _mirrored(x, 1, TOP2, False), x - _mirrored(x, 3, TOP3, True)
        d0, d1, d2, d3 = d0 * d0, d1 * d1, d2 * d2, d3 * d3
        b0, b1, b2, b3 = (c4 + d1 < c0 + d0), (c6 + d1 < c2 + d0), (c4 + d0 < c0 + d1), (c6 + d0 < c2 + d1)
        b4, b5, b6, b7 = (c7 + d3 < c3 + d2), (c5 + d3 < c1 + d2), (c7 + d2 < c3 + d3), (c5 + d2 < c1 + d3)
        n0, n1 = tl.minimum(c0 + d0, c4 + d1), tl.minimum(c2 + d0, c6 + d1)
        n2, n3 = tl.minimum(c0 + d1, c4 + d0), tl.minimum(c2 + d1, c6 + d0)
        n4, n5 = tl.minimum(c3 + d2, c7 + d3), tl.minimum(c1 + d2, c5 + d3)
        n6, n7 = tl.minimum(c3 + d3, c7 + d2), tl.minimum(c1 + d3, c5 + d2)
        c0, c1, c2, c3, c4, c5, c6, c7 = n0, n1, n2, n3, n4, n5, n6, n7
        low = b0.to(tl.int32) + 2 * b1.to(tl.int32) + 4 * b2.to(tl.int32) + 8 * b3.to(tl.int32)
        high = b4.to(tl.int32) + 2 * b5.to(tl.int32) + 4 * b6.to(tl.int32) + 8 * b7.to(tl.int32)
        tl.store(branches + at + t, (low + 16 * high).to(tl.uint8), mask=mask)
    best, state = c0, tl.zeros((BLOCK,), tl.int32)
    best, state = tl.minimum(best, c1), tl.where(c1 < best, 1, state)
    best, state = tl.minimum(best, c2), tl.where(c2 < best, 2, state)
    best, state = tl.minimum(best, c3), tl.where(c3 < best, 3, state)
    best, state = tl.minimum(best, c4), tl.where(c4 < best, 4, state)
    best, state = tl.minimum(best, c5), tl.where(c5 < best, 5, state)
    best, state = tl.minimum(best, c6), tl.where(c6 < best, 6, state)
    best, state = tl.minimum(best, c7), tl.where(c7 < best, 7, state)
    for back in range(LENGTH):
        t = LENGTH - 1 - back
        x = tl.load(target + at + t, mask=mask, other=0.0)
        branch = (tl.load(branches + at + t, mask=mask, other=0).to(tl.int32) >> state) & 1
        subset = (state >> 1) ^ branch
        even = tl.where(subset == 0, _lattice(x, 0, TOP0), _lattice(x, 2, TOP1))
        odd = tl.where(subset == 2, _mirrored(x, 1, TOP2, False), _mirrored(x, 3, TOP3, True))
        tl.store(levels + at + t, tl.where(subset < 2, even, odd), mask=mask)
        first = tl.where(state < 4, 2 * (state & 1), 3 - 2 * (state & 1))
        state = first + 4 * branch


def launch_search(target_PL: Tensor, largest: int) -> Tensor:
    """``[P, L]`` float32 contiguous in and out; see :func:`golf_lightning.compression.search.search_levels`."""
    target_PL = target_PL.contiguous()
    paths, length = target_PL.shape
    levels_PL = torch.empty_like(target_PL)
    branches_PL = torch.empty(paths, length, dtype=torch.uint8, device=target_PL.device)
    tops = [float(largest - (largest - offset) % 4) for offset in (0, 2, 1, 3)]
    grid = (triton.cdiv(paths, PATHS),)
    _search_kernel[grid](
        target_PL, levels_PL, branches_PL, paths, LENGTH=length,
        TOP0=tops[0], TOP1=tops[1], TOP2=tops[2], TOP3=tops[3], BLOCK=PATHS, num_warps=1,
    )  # fmt: skip
    return levels_PL
