"""GPTQ in its plainest form, the oracle of the real one."""

import torch
from torch import Tensor

# N matrices, R rows (outputs), C columns (inputs), L columns still to come


def plain_gptq(weight_NRC: Tensor, hessian_NCC: Tensor, scale_NR: Tensor, largest: int, damping: float) -> Tensor:
    """One column after another in float64, each eliminated from an explicit inverse (optimal brain surgeon).

    Columns go in order of falling diagonal. No factorization, no blocks, no normalization: it shares nothing with
    :func:`golf_lightning.compression.gptq.gptq` but the arithmetic on paper.

    Args:
        weight_NRC: ``[N, R, C]``.
        hessian_NCC: ``[N, C, C]``.
        scale_NR: ``[N, R]``, the steps.
        largest: codes lie in ``-largest..largest``.
        damping: added to the diagonal, as a fraction of the mean diagonal.

    Returns:
        ``[N, R, C]`` int8 codes.
    """
    diagonal_NC = hessian_NCC.diagonal(dim1=1, dim2=2)
    order_NC = diagonal_NC.argsort(dim=1, descending=True, stable=True)
    hessian_NCC = hessian_NCC.double()
    mean_N1 = hessian_NCC.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
    damped_NCC = hessian_NCC + torch.diag_embed(damping * mean_N1 + mean_N1 * (diagonal_NC == 0))
    matrix_N = torch.arange(len(weight_NRC), device=weight_NRC.device)
    damped_NCC = damped_NCC[matrix_N[:, None, None], order_NC[:, :, None], order_NC[:, None, :]]
    inverse_NLL = torch.stack([torch.linalg.inv(damped_CC) for damped_CC in damped_NCC])
    weight_NLR = weight_NRC.double().transpose(1, 2)[matrix_N[:, None], order_NC]
    scale_NR = scale_NR.double()
    codes = []
    for _ in range(weight_NRC.shape[2]):
        code_NR = (weight_NLR[:, 0] / scale_NR).round().clamp(-largest, largest)
        codes.append(code_NR.to(torch.int8))
        error_NR = weight_NLR[:, 0] - code_NR * scale_NR
        gain_NL = inverse_NLL[:, 0, 1:] / inverse_NLL[:, 0, :1]
        weight_NLR = weight_NLR[:, 1:] - gain_NL[:, :, None] * error_NR[:, None, :]
        inverse_NLL = inverse_NLL[:, 1:, 1:] - inverse_NLL[:, 1:, :1] * gain_NL[:, None, :]
    codes_NCR = torch.stack(codes, dim=1)
    return codes_NCR[matrix_N[:, None], order_NC.argsort(dim=1)].transpose(1, 2)
