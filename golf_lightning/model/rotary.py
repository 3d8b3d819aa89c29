"""Partial rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split, from float32 tables."""

import torch
from torch import Tensor

# T tokens, H heads, K head dimension, R rotated half (rope_dims / 2), P positions in the table


def rotary_table(positions: int, dims: int, base: float) -> Tensor:
    """Cosines and sines ``[2, P, R]`` float32, computed in float64 and rounded once."""
    frequencies_R = base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / max(dims, 1))
    angles_PR = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies_R
    return torch.stack([angles_PR.cos(), angles_PR.sin()]).float()


def document_positions(tokens: int, cu_seqlens: Tensor) -> Tensor:
    """Position of each row in its segment, ``[T]`` int64; padding rows count from the end of the last segment."""
    rows_T = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    segment_T = torch.searchsorted(cu_seqlens, rows_T, right=True) - 1
    return (rows_T - cu_seqlens[segment_T]).long()


def rotate(x_THK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate the first ``2 R`` dimensions of every head; the others pass through."""
    half = cos_TR.shape[-1]
    dtype = torch.promote_types(x_THK.dtype, cos_TR.dtype)
    first, second, rest = x_THK[..., :half].to(dtype), x_THK[..., half : 2 * half].to(dtype), x_THK[..., 2 * half :]
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([rotated.to(x_THK.dtype), rest], dim=-1)
