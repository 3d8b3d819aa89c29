"""The trellis search as one Triton kernel; imported only where it runs. A program walks down a block of paths."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from golf_lightning.compression.search import subset_range

# P paths, L rows of a path

PATHS = 32


@triton.jit
def _nearest(x, subset, low, high):
    level = 4.0 * tl.floor((x - subset) / 4.0 + 0.5) + subset
    return tl.minimum(tl.maximum(level, low), high)


@triton.jit
def _search_kernel(
    target, levels, branches, paths, LENGTH: tl.constexpr,
    LOW0: tl.constexpr, LOW1: tl.constexpr, LOW2: tl.constexpr, LOW3: tl.constexpr,
    HIGH0: tl.constexpr, HIGH1: tl.constexpr, HIGH2: tl.constexpr, HIGH3: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    path = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = path < paths
    at = path.to(tl.int64) * LENGTH
    far = tl.full((BLOCK,), float("inf"), tl.float32)
    c0 = tl.zeros((BLOCK,), tl.float32)
    c1, c2, c3, c4, c5, c6, c7 = far, far, far, far, far, far, far
    for t in range(LENGTH):
        x = tl.load(target + at + t, mask=mask, other=0.0)
        d0, d1 = x - _nearest(x, 0.0, LOW0, HIGH0), x - _nearest(x, 1.0, LOW1, HIGH1)
        d2, d3 = x - _nearest(x, 2.0, LOW2, HIGH2), x - _nearest(x, 3.0, LOW3, HIGH3)
        d0, d1, d2, d3 = d0 * d0, d1 * d1, d2 * d2, d3 * d3
        b0, b1, b2, b3 = (c4 + d2 < c0 + d0), (c6 + d2 < c2 + d0), (c4 + d0 < c0 + d2), (c6 + d0 < c2 + d2)
        b4, b5, b6, b7 = (c7 + d3 < c3 + d1), (c5 + d3 < c1 + d1), (c7 + d1 < c3 + d3), (c5 + d1 < c1 + d3)
        n0, n1 = tl.minimum(c0 + d0, c4 + d2), tl.minimum(c2 + d0, c6 + d2)
        n2, n3 = tl.minimum(c0 + d2, c4 + d0), tl.minimum(c2 + d2, c6 + d0)
        n4, n5 = tl.minimum(c3 + d1, c7 + d3), tl.minimum(c1 + d1, c5 + d3)
        n6, n7 = tl.minimum(c3 + d3, c7 + d1), tl.minimum(c1 + d3, c5 + d1)
        c0, c1, c2, c3, c4, c5, c6, c7 = n0, n1, n2, n3, n4, n5, n6, n7
        chosen = b0.to(tl.int32) + 2 * b1.to(tl.int32) + 4 * b2.to(tl.int32) + 8 * b3.to(tl.int32)
        upper = b4.to(tl.int32) + 2 * b5.to(tl.int32) + 4 * b6.to(tl.int32) + 8 * b7.to(tl.int32)
        tl.store(branches + at + t, (chosen + 16 * upper).to(tl.uint8), mask=mask)
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
        subset = (state >> 2) + 2 * (((state >> 1) & 1) ^ branch)
        low = tl.where(subset < 2, tl.where(subset == 0, LOW0, LOW1), tl.where(subset == 2, LOW2, LOW3))
        high = tl.where(subset < 2, tl.where(subset == 0, HIGH0, HIGH1), tl.where(subset == 2, HIGH2, HIGH3))
        tl.store(levels + at + t, _nearest(x, subset.to(tl.float32), low, high), mask=mask)
        first = tl.where(state < 4, 2 * (state & 1), 3 - 2 * (state & 1))
        state = first + 4 * branch


def launch_search(target_PL: Tensor, largest: int) -> Tensor:
    """``[P, L]`` float32 contiguous in and out; see :func:`golf_lightning.compression.search.search_levels`."""
    target_PL = target_PL.contiguous()
    paths, length = target_PL.shape
    levels_PL = torch.empty_like(target_PL)
    branches_PL = torch.empty(paths, length, dtype=torch.uint8, device=target_PL.device)
    low, high = zip(*((float(a), float(b)) for a, b in (subset_range(i, largest) for i in range(4))), strict=True)
    grid = (triton.cdiv(paths, PATHS),)
    _search_kernel[grid](
        target_PL, levels_PL, branches_PL, paths, LENGTH=length,
        LOW0=low[0], LOW1=low[1], LOW2=low[2], LOW3=low[3],
        HIGH0=high[0], HIGH1=high[1], HIGH2=high[2], HIGH3=high[3], BLOCK=PATHS, num_warps=1,
    )  # fmt: skip
    return levels_PL
