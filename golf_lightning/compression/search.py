"""The best path of levels through the trellis for a column of weights (Viterbi's algorithm).

The paths of a column are independent of each other, one for every ``RESTART`` rows, and of what GPTQ does across
columns: the search takes the place of rounding. See :mod:`golf_lightning.compression.trellis` for the trellis itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.compression.trellis import RESTART, STATES

# N matrices, R rows, L rows of a path, P paths (all groups of L rows of all matrices), S states

LEAST_LARGEST = 7
"""Levels must reach at least this far: with fewer than 4 bits some states would have no level on one side."""

DISTORTION = 0.26
"""Mean squared error of the trellis at high rates, in units of the fine step; a scalar quantizer of equal rate: 1/3."""

# Every state is reached from two; the branch tells which. Branch b comes from _FIRST[state] + 4 b, and its level is of
# subset (state >> 1) ^ b: 0 and 1 are the multiples of four and the even numbers between, 2 the magnitudes 1, 5, 9 ...,
# 3 zero and the magnitudes 3, 7, 11 ...
_FIRST = (0, 2, 0, 2, 3, 1, 3, 1)


def search_levels(target_NR: Tensor, largest: int) -> Tensor:
    """Levels ``[N, R]`` in ``-largest..largest`` on the trellis, with the least squared distance to ``target``.

    Args:
        target_NR: ``[N, R]`` float32, in units of the fine step.
        largest: at least ``LEAST_LARGEST``.
    """
    assert largest >= LEAST_LARGEST, largest
    matrices, rows = target_NR.shape
    length = min(rows, RESTART)
    padded_PL = F.pad(target_NR, (0, -rows % length)).reshape(-1, length)
    if target_NR.is_cuda:
        from golf_lightning.compression.triton_search import launch_search

        levels_PL = launch_search(padded_PL, largest)
    else:
        levels_PL = _search(padded_PL, largest)
    return levels_PL.reshape(matrices, -1)[:, :rows]


def subset_levels(target: Tensor, largest: int) -> Tensor:
    """The nearest level of each of the four subsets, in a new last dimension."""
    magnitude, sign = target.abs(), torch.where(target < 0, -1.0, 1.0)
    parts = []
    for subset, offset in enumerate((0, 2, 1, 3)):
        # Even subsets are lattices; odd ones mirror their positive half.
        x = target if subset < 2 else magnitude
        highest = largest - (largest - offset) % 4
        level = (4 * torch.floor((x - offset) / 4 + 0.5) + offset).clamp_max(highest)
        if subset < 2:
            level = level.clamp_min(-highest)
        else:
            level = level.clamp_min(offset)
            if subset == 3:
                level = torch.where(magnitude < 1.5, 0.0, level)
            level = level * sign
        parts.append(level)
    return torch.stack(parts, dim=-1)


def _search(target_PL: Tensor, largest: int) -> Tensor:
    """The search in plain PyTorch: ``[P, L]`` in and out."""
    paths, length = target_PL.shape
    device = target_PL.device
    first_S = torch.tensor(_FIRST, device=device)
    from_S2 = torch.stack([first_S, first_S + STATES // 2], dim=1)
    half_S = torch.arange(STATES, device=device) >> 1
    subset_S2 = torch.stack([half_S, half_S ^ 1], dim=1)
    levels_LP4 = subset_levels(target_PL.T, largest)
    distance_LPS2 = (target_PL.T[:, :, None] - levels_LP4).square()[:, :, subset_S2]
    cost_PS = torch.full((paths, STATES), float("inf"), device=device)
    cost_PS[:, 0] = 0
    branch_LPS = torch.empty(length, paths, STATES, dtype=torch.int64, device=device)
    for t in range(length):
        cost_PS, branch_LPS[t] = (cost_PS[:, from_S2] + distance_LPS2[t]).min(dim=2)
    state_P1 = cost_PS.argmin(dim=1, keepdim=True)
    subset_LP1 = torch.empty(length, paths, 1, dtype=torch.int64, device=device)
    for t in reversed(range(length)):
        branch_P1 = branch_LPS[t].gather(1, state_P1)
        subset_LP1[t] = (state_P1 >> 1) ^ branch_P1
        state_P1 = first_S[state_P1] + STATES // 2 * branch_P1
    return levels_LP4.gather(2, subset_LP1).squeeze(2).T
