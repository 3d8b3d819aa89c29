"""GPTQ over a whole bank of matrices at once.

Columns are quantized one after another; the error of each is spread over the columns still to come, so that the
change of the outputs on calibration data stays small (Frantar et al., GPTQ, arXiv 2210.17323, with its ``act-order``:
columns of large activations first). All matrices of a bank advance together, so a bank costs as many small launches as
one matrix has columns, and nothing waits for the host inside the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from golf_lightning.compression.quantize import RolePrecision
from golf_lightning.compression.search import DISTORTION, search_levels
from golf_lightning.errors import GolfError
from golf_lightning.threads import one_thread

# N matrices of a bank, R rows (outputs), C columns (inputs), B columns of a block

MORE_DAMPING = 10.0
"""Factor by which the damping of a matrix grows when its Hessian cannot be factorized in float32."""
MAX_DAMPING = 1e4
"""Beyond this fraction of the mean diagonal, damping means round to nearest: giving up is clearer."""


@dataclass(slots=True)
class GPTQResult:
    """Codes of a bank, and what it took to get them.

    Attributes:
        codes: ``[N, R, C]`` int8.
        damping: of each matrix, as used; above the wanted one where a Hessian was nearly singular.
    """

    codes: Tensor
    damping: list[float]


def gptq(
    name: str,
    weight_NRC: Tensor,
    hessian_NCC: Tensor,
    scale_NR: Tensor,
    *,
    precision: RolePrecision,
    damping: float = 0.01,
    block: int = 128,
    trellis: bool = False,
) -> GPTQResult:
    """Quantize every matrix of a bank against the Hessian of its inputs.

    Pure: the result depends on the arguments alone, and on each matrix apart, so matrices may be divided among ranks.

    Args:
        name: parameter name, for errors.
        weight_NRC: ``[N, R, C]`` float32, finite.
        hessian_NCC: ``[N, C, C]`` float32, sums of ``x x^T`` of each matrix's inputs; any positive multiple serves.
        scale_NR: ``[N, R]`` float16 from :func:`~golf_lightning.compression.quantize.sdclip_scale`.
        precision: bits of the codes.
        damping: added to the diagonal, as a fraction of the mean diagonal.
        block: columns treated together.
        trellis: take levels of the trellis, the best path down every column, instead of the nearest integers.

    Raises:
        GolfError: a Hessian is not finite, or cannot be factorized with any damping.
    """
    ordered_NCC, order_NC = _in_order(hessian_NCC)
    feedback_NCC, used = _feedback(name, ordered_NCC, damping)
    # Columns lead, so that a column of all rows is contiguous; the unit is the row's scale, so that codes are integers.
    units_NRC = weight_NRC / scale_NR.float().unsqueeze(-1)
    gather_NCR = order_NC.unsqueeze(2).expand(-1, -1, weight_NRC.shape[1])
    units_NCR = units_NRC.transpose(1, 2).gather(1, gather_NCR)
    with one_thread():
        _quantize_columns(units_NCR, feedback_NCC, _rounding(units_NCR, precision.largest, trellis), block)
    codes_NCR = torch.empty_like(units_NCR, dtype=torch.int8).scatter_(1, gather_NCR, units_NCR.to(torch.int8))
    return GPTQResult(codes_NCR.transpose(1, 2).contiguous(), used)


def _rounding(units_NCR: Tensor, largest: int, trellis: bool) -> Callable[[Tensor], Tensor]:
    """What turns a column ``[N, R]`` into codes: rounding, or the trellis search.

    Codes of the trellis cost bytes in proportion to their squares, so each row is first shrunk as far as that pays: at
    the slope of distortion over rate, by ``1 + distortion / variance``.
    """
    if not trellis:
        return lambda column_NR: column_NR.round().clamp_(-largest, largest)
    variance_NR = units_NCR.square().mean(dim=1).clamp_min(DISTORTION)
    kept_NR = variance_NR / (variance_NR + DISTORTION)
    return lambda column_NR: search_levels(column_NR * kept_NR, largest)


def _quantize_columns(
    units_NCR: Tensor, feedback_NCC: Tensor, rounding: Callable[[Tensor], Tensor], block: int
) -> None:
    """Replace the weights ``[N, C, R]``, in units of their scale, by their codes, spreading errors to later columns."""
    columns = units_NCR.shape[1]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        block_NBR = units_NCR[:, start:stop]
        inside_NBB = feedback_NCC[:, start:stop, start:stop]
        error_NBR = torch.empty_like(block_NBR)
        for j in range(stop - start):
            column_NR = block_NBR[:, j]
            code_NR = rounding(column_NR)
            error_NR = torch.sub(column_NR, code_NR, out=error_NBR[:, j])
            column_NR.copy_(code_NR)
            block_NBR[:, j + 1 :].addcmul_(inside_NBB[:, j, j + 1 :, None], error_NR[:, None], value=-1.0)
        if stop < columns:
            units_NCR[:, stop:].baddbmm_(feedback_NCC[:, start:stop, stop:].transpose(1, 2), error_NBR, alpha=-1.0)


def residual_curvature(name: str, hessian_NCC: Tensor, damping: float) -> Tensor:
    """Curvature ``[N, C]`` that is left of each column, in the order of quantization, once later ones correct for it.

    A rounding error ``e`` of that column ends up as ``e^2`` times this in the weighted error. Damping counts in.

    Raises:
        GolfError: see :func:`gptq`.
    """
    ordered_NCC, _ = _in_order(hessian_NCC)
    upper_NCC, _ = _inverse_factor(name, ordered_NCC, damping)
    mean_N1 = hessian_NCC.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
    return mean_N1 / upper_NCC.diagonal(dim1=1, dim2=2).square()


def _in_order(hessian_NCC: Tensor) -> tuple[Tensor, Tensor]:
    """Hessians with rows and columns in order of falling diagonal, and that order ``[N, C]``."""
    order_NC = hessian_NCC.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    gather_NCC = order_NC.unsqueeze(1).expand(-1, hessian_NCC.shape[1], -1)
    return hessian_NCC.gather(2, gather_NCC).gather(1, gather_NCC.transpose(1, 2)), order_NC


def _feedback(name: str, hessian_NCC: Tensor, damping: float) -> tuple[Tensor, list[float]]:
    """What a unit error of column i subtracts from each later column j: ``U[i, j] / U[i, i]``, and the damping used."""
    upper_NCC, used = _inverse_factor(name, hessian_NCC, damping)
    return upper_NCC / upper_NCC.diagonal(dim1=1, dim2=2).unsqueeze(-1), used


def _inverse_factor(name: str, hessian_NCC: Tensor, damping: float) -> tuple[Tensor, list[float]]:
    """U, the upper Cholesky factor of the inverse of each Hessian over its mean diagonal, and the damping used.

    It is the inverse of the flipped Cholesky factor of the flipped Hessian, which needs no explicit inverse and so
    keeps more of float32's digits.
    """
    matrices = hessian_NCC.shape[0]
    hessian_NCC = _normalized(name, hessian_NCC).flip(1, 2)
    factor_NCC = torch.empty_like(hessian_NCC)
    used = [damping] * matrices
    pending = list(range(matrices))
    added = damping
    while pending:
        damped_NCC = hessian_NCC[pending]
        damped_NCC.diagonal(dim1=1, dim2=2).add_(added)
        lower_NCC, failed_N = torch.linalg.cholesky_ex(damped_NCC)
        factor_NCC[pending] = lower_NCC
        pending = [index for index, code in zip(pending, failed_N.tolist(), strict=True) if code]
        added *= MORE_DAMPING
        if pending and added > MAX_DAMPING:
            raise GolfError(f"The Hessian of {name}[{pending[0]}] cannot be factorized; calibrate with more batches.")
        for index in pending:
            used[index] = added
    identity_CC = torch.eye(hessian_NCC.shape[1], dtype=hessian_NCC.dtype, device=hessian_NCC.device)
    inverse_NCC = torch.linalg.solve_triangular(factor_NCC, identity_CC.expand_as(factor_NCC), upper=False)
    return inverse_NCC.flip(1, 2), used


def _normalized(name: str, hessian_NCC: Tensor) -> Tensor:
    """Hessians divided by their mean diagonal. An input that was never active gets diagonal 1 and is rounded."""
    diagonal_NC = hessian_NCC.diagonal(dim1=1, dim2=2)
    mean_N11 = diagonal_NC.mean(dim=1)[:, None, None]
    if not mean_N11.isfinite().all():
        raise GolfError(f"The Hessians of {name} are not finite; activations overflowed, export an earlier checkpoint.")
    scaled_NCC = hessian_NCC / torch.where(mean_N11 == 0, torch.ones_like(mean_N11), mean_N11)
    dead_NC = (diagonal_NC == 0).to(scaled_NCC.dtype)
    scaled_NCC.diagonal(dim1=1, dim2=2).add_(dead_NC)
    return scaled_NCC
