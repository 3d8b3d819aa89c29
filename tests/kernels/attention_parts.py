"""What FlashAttention-4's main backward kernel reads and leaves, in plain PyTorch: the oracle of tests."""

import math

import torch
from torch import Tensor

# T tokens, P padded rows, H query heads, G key/value heads, K = 64 columns of a head


def wgmma_places() -> Tensor:
    """Where a tile of 64 rows and 64 columns lies in memory, ``[64, 64]``, told from the threads that hold it.

    128 threads in 4 warps; a warp has 16 rows. For each 8 columns a thread has two neighbours of one row and two of the
    row 8 further down, and stores these 4 behind those of the thread before (PTX: wgmma's accumulator fragment).
    """
    place = torch.empty(64, 64, dtype=torch.int64)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for group in range(8):
            for value in range(4):
                row = 16 * warp + lane // 4 + 8 * (value // 2)
                place[row, 8 * group + 2 * (lane % 4) + value % 2] = group * 512 + thread * 4 + value
    return place


def padded_rows(bounds: list[int]) -> list[int]:
    """The padded row of each token up to the last bound."""
    starts = [(bound + 128 * s) // 128 * 128 for s, bound in enumerate(bounds)]
    return [starts[s] + i for s, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)) for i in range(b - a)]


def accumulator_places(bounds: list[int]) -> Tensor:
    """Where the columns of each token up to the last bound lie in a head's accumulator, ``[tokens, K]``."""
    rows = torch.tensor(padded_rows(bounds), dtype=torch.int64)
    return rows[:, None] // 64 * 4096 + wgmma_places()[rows % 64]


def read_accumulator(accumulated: Tensor, bounds: list[int]) -> Tensor:
    """``[H, P K]`` to ``[tokens, H, K]``."""
    return accumulated[:, accumulator_places(bounds).to(accumulated.device)].transpose(0, 1)


def add_to_accumulator(accumulated: Tensor, x_THK: Tensor, bounds: list[int]) -> None:
    """The inverse, added to what is there."""
    accumulated[:, accumulator_places(bounds)] += x_THK.transpose(0, 1).to(accumulated.dtype)


def softmax_sums(q_THK: Tensor, k_TGK: Tensor, bounds: list[int]) -> Tensor:
    """The logarithms ``[H, T]`` of the softmax's sums, natural ones, as the forward pass leaves them."""
    lse = q_THK.new_full((q_THK.shape[1], q_THK.shape[0]), math.nan)
    for a, b in zip(bounds, bounds[1:], strict=False):
        lse[:, a:b] = _scores(q_THK[a:b], k_TGK[a:b]).logsumexp(-1)
    return lse


def main_backward(
    q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, dout_THK: Tensor, logs_HP: Tensor, sums_HP: Tensor,
    dq: Tensor, dk: Tensor, dv: Tensor, cu_seqlens: Tensor, max_seqlen: int,
) -> None:  # fmt: skip
    """The kernel's contract, in float64: by document, whole blocks of 128 query rows with whatever they hold."""
    bounds = cu_seqlens.tolist()
    groups, scale = q_THK.shape[1] // k_TGK.shape[1], q_THK.shape[2] ** -0.5
    rows = padded_rows(bounds)
    gradients = [torch.zeros(bounds[-1], x.shape[1], 64, dtype=torch.float64) for x in (q_THK, k_TGK, v_TGK)]
    for a, b in zip(bounds, bounds[1:], strict=False):
        if a == b:
            continue
        # The kernel's tiles hold rows of the next document, or nothing, where this one ends.
        whole = -(-(b - a) // 128) * 128
        q, dout = (_rows(x, a, whole).double().transpose(0, 1) for x in (q_THK, dout_THK))
        k, v = (x[a:b].double().repeat_interleave(groups, dim=1).transpose(0, 1) for x in (k_TGK, v_TGK))
        logs, sums = (x[:, rows[a] : rows[a] + whole, None].double() for x in (logs_HP, sums_HP))
        causal = torch.arange(whole)[:, None] >= torch.arange(b - a)
        weights = torch.where(causal, torch.exp2(q @ k.mT * scale / math.log(2) - logs), 0)
        dscores = weights * (dout @ v.mT - sums)
        found = (dscores @ k)[:, : b - a], dscores.mT @ q, weights.mT @ dout
        for into, x in zip(gradients, found, strict=True):
            into[a:b] = x.transpose(0, 1).unflatten(1, (into.shape[1], -1)).sum(2)
    for accumulated, gradient in zip((dq, dk, dv), gradients, strict=True):
        add_to_accumulator(accumulated, gradient, bounds)


def attention_gradients(
    q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, dout_THK: Tensor, bounds: list[int]
) -> list[Tensor]:
    """Of queries, keys and values, by the formula: an operation's own kernel cannot ask autograd."""
    gradients = [torch.zeros_like(x) for x in (q_THK, k_TGK, v_TGK)]
    groups, scale = q_THK.shape[1] // k_TGK.shape[1], q_THK.shape[2] ** -0.5
    for a, b in zip(bounds, bounds[1:], strict=False):
        q, dout = (x[a:b].transpose(0, 1) for x in (q_THK, dout_THK))
        k, v = (x[a:b].repeat_interleave(groups, dim=1).transpose(0, 1) for x in (k_TGK, v_TGK))
        weights = _scores(q_THK[a:b], k_TGK[a:b]).softmax(-1)
        along = dout @ v.mT
        dscores = weights * (along - (along * weights).sum(-1, keepdim=True)) * scale
        for into, x in zip(gradients, (dscores @ k, dscores.mT @ q, weights.mT @ dout), strict=True):
            into[a:b] = x.transpose(0, 1).unflatten(1, (into.shape[1], -1)).sum(2)
    return gradients


def _rows(x: Tensor, start: int, count: int) -> Tensor:
    rows = x[start : start + count]
    return torch.cat([rows, rows.new_zeros(count - rows.shape[0], *rows.shape[1:])])


def _scores(q_THK: Tensor, k_TGK: Tensor) -> Tensor:
    tokens, groups = q_THK.shape[0], q_THK.shape[1] // k_TGK.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q_THK, k_TGK.repeat_interleave(groups, dim=1)) * q_THK.shape[2] ** -0.5
    return scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -torch.inf)
