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
"""Levels must reach at least this far, or some steps down a path would have no level on one side of zero."""

DISTORTION = 0.26
"""Mean squared error of the trellis in units of the fine step; a plain grid of equal rate has 1/3."""

# Every state is reached from two. Branch b into a state comes from FIRST + 4 b, and its level is SUBSET, or for b = 1
# SUBSET ^ 2, modulo 4. NEXT_STATE read backwards; a test compares them.
FIRST = (0, 2, 0, 2, 3, 1, 3, 1)
SUBSET = (0, 0, 2, 2, 1, 1, 3, 3)


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
        levels_PL = search_on_cpu(padded_PL, largest)
    return levels_PL.reshape(matrices, -1)[:, :rows]


def search_on_cpu(target_PL: Tensor, largest: int) -> Tensor:
    """The search in plain PyTorch, one path a row: ``[P, L]`` in and out."""
    paths, length = target_PL.shape
    device = target_PL.device
    first_S, subset_S = torch.tensor(FIRST, device=device), torch.tensor(SUBSET, device=device)
    from_S2 = torch.stack([first_S, first_S + STATES // 2], dim=1)
    subset_S2 = torch.stack([subset_S, subset_S ^ 2], dim=1)
    levels_LP4 = _nearest_of_subsets(target_PL.T, largest)
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
        subset_LP1[t] = subset_S[state_P1] ^ (2 * branch_P1)
        state_P1 = first_S[state_P1] + STATES // 2 * branch_P1
    return levels_LP4.gather(2, subset_LP1).squeeze(2).T


def _nearest_of_subsets(target: Tensor, largest: int) -> Tensor:
    """The nearest level of each remainder modulo 4, in a new last dimension."""
    parts = []
    for subset in range(4):
        level = 4 * torch.floor((target - subset) / 4 + 0.5) + subset
        parts.append(level.clamp(*subset_range(subset, largest)))
    return torch.stack(parts, dim=-1)


def subset_range(subset: int, largest: int) -> tuple[int, int]:
    """The smallest and the largest level of a remainder modulo 4 within ``-largest..largest``."""
    return -largest + (subset + largest) % 4, largest - (largest - subset) % 4
