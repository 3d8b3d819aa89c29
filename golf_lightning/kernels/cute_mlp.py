"""The MLP's products on Hopper by quack-kernels (CuTe DSL), whose kernels take a function of one element as epilogue.

Two groups of warps take turns: while one multiplies, the other applies the epilogue to its tile and writes it. That
schedule, CUTLASS's ping-pong, hides the epilogue that the Triton kernels expose. Kernels are compiled at their first
call and serve any number of tokens. Source of the kernels: Tri Dao et al., QuACK, Apache licence 2.0.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from golf_lightning.kernels.mlp import NEGATIVE_SLOPE

# T tokens, D width, M hidden units


class Tiles(NamedTuple):
    """Tile of the output (rows, columns), columns the epilogue takes at once, and rows of tiles walked together."""

    rows: int
    columns: int
    piece: int
    together: int


HIDDEN_TILES = Tiles(128, 160, 32, 16)
PRODUCT_TILES = Tiles(128, 192, 64, 16)


def formulas(maximum: Callable[[Any, Any], Any]) -> tuple[Callable[..., dict[str, Any]], ...]:
    """What becomes of one element of each product: of ``z``, hidden unit and slope; of a gradient, it times a slope.

    The package knows ``acc``, the element, ``c``, one of a matrix beside it, and ``D``, the result, by these names.

    Args:
        maximum: of two elements; with a slope from 0 to 1 it is cheaper than a choice by sign.
    """

    # Where this file lies in site-packages, the package's cache on disk knows these functions by name alone: a change
    # of what they compute needs another name.
    def hidden_and_slope(acc: Any) -> dict[str, Any]:
        bent = maximum(acc, acc * NEGATIVE_SLOPE)
        return {"D": bent * bent, "slope": maximum(acc * 2, acc * (2 * NEGATIVE_SLOPE * NEGATIVE_SLOPE))}

    def sloped(acc: Any, c: Any) -> dict[str, Any]:
        return {"D": acc * c}

    return hidden_and_slope, sloped


@functools.cache
def epilogues() -> tuple[Any, Any]:
    """The two products of the package with :func:`formulas` as epilogues.

    Raises:
        ImportError: the package, or what it needs, is missing or another version.
        AttributeError: likewise.
        TypeError: it lies outside site-packages, where it asks for more than CuTe DSL's functions tell.
    """
    import cutlass.cute as cute
    from quack.epilogue.frontend import gemm_epilogue

    hidden_and_slope, sloped = formulas(cute.arch.fmax)
    return gemm_epilogue(outputs=("slope",))(hidden_and_slope), gemm_epilogue()(sloped)


@functools.cache
def _options(tiles: Tiles) -> dict[str, Any]:
    from quack.gemm_sm90 import GemmSm90

    # The package chooses 32 columns and lets no caller say otherwise, but sets what it is told on the kernel's builder.
    # Kept, since plans are found by it. Dependent launches overlap little here, and not every capture of a graph
    # accepts them.
    shape = functools.partial(GemmSm90._compute_tile_shape_or_override, epi_tile_override=(64, tiles.piece))
    return {
        "tile_M": tiles.rows,
        "tile_N": tiles.columns,
        "cluster_M": 2,
        "cluster_N": 1,
        "pingpong": True,
        "max_swizzle_size": tiles.together,
        "post_init_attrs": (("use_pdl", False), ("_compute_tile_shape_or_override", shape)),
    }


def cute_hidden(x_TD: Tensor, up_MD: Tensor, tiles: Tiles = HIDDEN_TILES) -> tuple[Tensor, Tensor]:
    """Hidden units and the activation's derivative, ``[T, M]`` each; operands contiguous, in bfloat16."""
    hidden, slope = (x_TD.new_empty(x_TD.shape[0], up_MD.shape[0]) for _ in range(2))
    if x_TD.shape[0]:
        epilogues()[0].gemm(x_TD, up_MD, hidden, epi_args={"slope": slope}, **_options(tiles))
    return hidden, slope


def cute_product(dout_TD: Tensor, down_DM: Tensor, slope_TM: Tensor, tiles: Tiles = PRODUCT_TILES) -> Tensor:
    """``(dout down) * slope``, ``[T, M]``; operands contiguous, in bfloat16."""
    dz = slope_TM.new_empty(slope_TM.shape)
    if slope_TM.shape[0]:
        epilogues()[1].gemm(dout_TD, down_DM, dz, slope_TM, epi_args={}, b_kn=True, **_options(tiles))
    return dz
