"""Newton-Schulz: the nearest orthogonal matrix of every matrix in a bank, by matrix products alone.

Shapes: N matrices, R rows (outputs), C columns (inputs); after turning tall matrices over, R <= C.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Polynomial = tuple[float, float, float]

COEFFICIENTS: dict[str, tuple[Polynomial, ...]] = {
    "quintic": ((3.4445, -4.7750, 2.0315),) * 5,
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
"""One (a, b, c) per step. Quintic: Jordan et al., Muon (2024). Polar Express: Amsel et al. (2025, arXiv:2505.16932)."""

EPS = 1e-7
"""Added to the Frobenius norm, and the least norm of a row: a zero matrix stays zero."""


def normalize_rows(x_NRC: Tensor) -> Tensor:
    """Divide every row by its L2 norm, norms taken as at least 1e-7 (MuonEq-R).

    Args:
        x_NRC: ``[N, R, C]`` momentum-corrected gradients.

    Returns:
        ``[N, R, C]``, same dtype, rows of norm 1; rows of zeros stay zero.
    """
    norm_NR1 = torch.linalg.vector_norm(x_NRC, dim=-1, keepdim=True)
    return x_NRC / norm_NR1.clamp_min(EPS)


def orthogonalize(x_NRC: Tensor, coefficients: Sequence[Polynomial], dtype: torch.dtype) -> Tensor:
    """Drive the singular values of every matrix towards 1, keeping its singular vectors.

    Each matrix is divided by its Frobenius norm (plus 1e-7), so that no singular value exceeds 1, and then passes
    through ``x -> a x + b (x x^T) x + c (x x^T)^2 x``, once per triple. Tall matrices are transposed first, which makes
    the Gram matrix the small one. Five quintic steps bring singular values above 0.002 of the
    Frobenius norm into 0.68..1.21, Polar Express those above 0.001 into 0.85..1.15. Source: Jordan et al., Muon (2024).

    Args:
        x_NRC: ``[N, R, C]``, any floating dtype.
        coefficients: one ``(a, b, c)`` per step, see :data:`COEFFICIENTS`.
        dtype: dtype of the products and of the result.

    Returns:
        ``[N, R, C]`` of ``dtype``.
    """
    tall = x_NRC.shape[-2] > x_NRC.shape[-1]
    # The norm of bf16 values would itself be rounded, so it is taken before the cast.
    x_NRC = x_NRC.to(torch.float64 if dtype == torch.float64 else torch.float32)
    x_NRC = x_NRC / (torch.linalg.vector_norm(x_NRC, dim=(-2, -1), keepdim=True) + EPS)
    x_NRC = (x_NRC.mT if tall else x_NRC).to(dtype)
    for a, b, c in coefficients:
        gram_NRR = x_NRC @ x_NRC.mT
        poly_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, poly_NRR, x_NRC, beta=a)
    return x_NRC.mT if tall else x_NRC
