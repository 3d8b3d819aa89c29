"""Triton kernels of the fused MLP; imported only where they run.

Both are persistent products: one program a multiprocessor walks over output tiles, so that the loads of the next tile
run while the last one is written. Tiles move by tensor descriptors, which also cut what lies outside a matrix. An
output tile is written as two halves, which halves the shared memory that the epilogue takes from the pipeline.
"""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# T tokens, D width, M hidden units


class Tiles(NamedTuple):
    """Tile of the output (rows, columns), depth of one step, warps, stages, and programs a multiprocessor."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    programs: int = 1


HIDDEN_TILES = Tiles(128, 256, 64, 8, 4)
PRODUCT_TILES = Tiles(128, 256, 64, 8, 3)


@triton.jit
def _store_hidden(z, hidden, slope, row, column, NEGATIVE: tl.constexpr):
    # The tensor cores wait for this: with a slope below 1 each branch is a maximum, cheaper than a choice by sign.
    bent = tl.maximum(z, z * NEGATIVE)
    hidden.store([row, column], (bent * bent).to(hidden.dtype))
    derivative = tl.maximum(2 * z, z * (2 * NEGATIVE * NEGATIVE))
    slope.store([row, column], derivative.to(slope.dtype))


@triton.jit
def _hidden_kernel(
    x, up, hidden, slope, tokens, width, units,
    NEGATIVE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """``z = x up^T``; writes ``leaky(z)^2`` and its derivative."""
    HALF: tl.constexpr = COLUMNS // 2
    across = tl.cdiv(units, COLUMNS)
    steps = tl.cdiv(width, DEPTH)
    for tile in tl.range(tl.program_id(0), tl.cdiv(tokens, ROWS) * across, PROGRAMS, flatten=True):
        row, column = (tile // across) * ROWS, (tile % across) * COLUMNS
        z = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for step in range(steps):
            a = x.load([row, step * DEPTH])
            b = up.load([column, step * DEPTH])
            z = tl.dot(a, b.T, z)
        left, right = tl.split(tl.permute(tl.reshape(z, (ROWS, 2, HALF)), (0, 2, 1)))
        _store_hidden(left, hidden, slope, row, column, NEGATIVE)
        _store_hidden(right, hidden, slope, row, column + HALF, NEGATIVE)


@triton.jit
def _product_kernel(
    dout, down, slope, dz, tokens, width, units,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """``(dout down) * slope``."""
    HALF: tl.constexpr = COLUMNS // 2
    across = tl.cdiv(units, COLUMNS)
    steps = tl.cdiv(width, DEPTH)
    for tile in tl.range(tl.program_id(0), tl.cdiv(tokens, ROWS) * across, PROGRAMS, flatten=True):
        row, column = (tile // across) * ROWS, (tile % across) * COLUMNS
        product = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for step in range(steps):
            a = dout.load([row, step * DEPTH])
            b = down.load([step * DEPTH, column])
            product = tl.dot(a, b, product)
        left, right = tl.split(tl.permute(tl.reshape(product, (ROWS, 2, HALF)), (0, 2, 1)))
        dz.store([row, column], (left * slope.load([row, column])).to(dz.dtype))
        dz.store([row, column + HALF], (right * slope.load([row, column + HALF])).to(dz.dtype))


def launch_hidden(
    x_TD: Tensor, up_MD: Tensor, negative_slope: float, tiles: Tiles = HIDDEN_TILES
) -> tuple[Tensor, Tensor]:
    """Hidden units and the activation's derivative, ``[T, M]`` each; a row is a multiple of 16 bytes."""
    (tokens, width), units = x_TD.shape, up_MD.shape[0]
    hidden, slope = (x_TD.new_empty(tokens, units) for _ in range(2))
    if tokens:
        half = [tiles.rows, tiles.columns // 2]
        programs = _programs(x_TD, tokens, units, tiles)
        _hidden_kernel[(programs,)](
            TensorDescriptor.from_tensor(x_TD, [tiles.rows, tiles.depth]),
            TensorDescriptor.from_tensor(up_MD, [tiles.columns, tiles.depth]),
            TensorDescriptor.from_tensor(hidden, half),
            TensorDescriptor.from_tensor(slope, half),
            tokens, width, units,
            NEGATIVE=negative_slope, ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, PROGRAMS=programs,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return hidden, slope


def launch_product(dout_TD: Tensor, down_DM: Tensor, slope_TM: Tensor, tiles: Tiles = PRODUCT_TILES) -> Tensor:
    """``(dout down) * slope``, ``[T, M]``; a row is a multiple of 16 bytes."""
    (tokens, width), units = dout_TD.shape, down_DM.shape[1]
    dz = torch.empty_like(slope_TM)
    if tokens:
        half = [tiles.rows, tiles.columns // 2]
        programs = _programs(dout_TD, tokens, units, tiles)
        _product_kernel[(programs,)](
            TensorDescriptor.from_tensor(dout_TD, [tiles.rows, tiles.depth]),
            TensorDescriptor.from_tensor(down_DM, [tiles.depth, tiles.columns]),
            TensorDescriptor.from_tensor(slope_TM, half),
            TensorDescriptor.from_tensor(dz, half),
            tokens, width, units,
            ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, PROGRAMS=programs,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return dz


def _programs(x: Tensor, tokens: int, units: int, tiles: Tiles) -> int:
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
    return min(tiles.programs * processors, triton.cdiv(tokens, tiles.rows) * triton.cdiv(units, tiles.columns))
