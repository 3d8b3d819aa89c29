"""Second moments of what enters every matrix, summed over calibration batches.

The Hessian of a layer's squared output error with respect to its weights is ``X^T X`` of its inputs (twice, which GPTQ
does not need). Q, K and V of a layer share one; looped layers add up their visits in the graph as it will be run.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from golf_lightning.data.batch import PackedBatch
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig, matrix_inputs
from golf_lightning.model.gpt import GPT

# T rows of a batch, C inputs of a matrix

BLOCK = 512
"""Fewest columns of a product; smaller ones leave a GPU idle."""


def site_widths(config: GPTConfig) -> dict[str, int]:
    """Width C of the activations at each recorder site, in the order in which ranks sum them."""
    widths = {"embedding": config.width} | {name: shape[2] for name, shape in config.bank_shapes.items()}
    return {site: widths[name] for name, sites in matrix_inputs(config).items() for site in sites}


class HessianRecorder:
    """Sums ``x^T x`` per site in float32; pass it to the model as ``recorder``.

    Products of bf16 activations are exact in float32, so on CUDA they run on the tensor cores without loss. Of wide
    Hessians only the upper triangle is summed, in blocks, until :meth:`finish`.

    Args:
        widths: width of each site's activations.
        device: where the sums live.

    Attributes:
        hessians: ``[C, C]`` float32 by site, complete after :meth:`finish`.
        valid_rows: rows of the coming batch that hold tokens; the rest is padding and must not count.
    """

    def __init__(self, widths: dict[str, int], device: torch.device | str) -> None:
        self.hessians = {
            site: torch.zeros(width, width, dtype=torch.float32, device=device) for site, width in widths.items()
        }
        self.valid_rows = 0

    def __call__(self, site: str, x_TC: Tensor) -> None:
        """Add the activations ``[T, C]`` (any float dtype) of one visit of a site."""
        rows_TC = x_TC.detach()[: self.valid_rows]
        fast = rows_TC.is_cuda and rows_TC.dtype in (torch.bfloat16, torch.float16)
        rows_TC = rows_TC if fast else rows_TC.float()
        for start, stop in _column_blocks(rows_TC.shape[1]):
            left, right = rows_TC[:, :stop].T, rows_TC[:, start:stop]
            if fast:
                self.hessians[site][:stop, start:stop] += torch.mm(left, right, out_dtype=torch.float32)
            else:
                self.hessians[site][:stop, start:stop].addmm_(left, right)

    def finish(self) -> dict[str, Tensor]:
        """The Hessians, complete."""
        for hessian in self.hessians.values():
            for start, stop in _column_blocks(hessian.shape[0]):
                hessian[start:stop, :start] = hessian[:start, start:stop].T
        return self.hessians


def _column_blocks(columns: int) -> list[tuple[int, int]]:
    """Blocks of at least ``BLOCK`` columns; with four, 10 of 16 products are left."""
    width = max(BLOCK, -(-columns // 4))
    return [(start, min(start + width, columns)) for start in range(0, columns, width)]


@dataclass(slots=True)
class Calibration:
    """What calibration found.

    Attributes:
        hessians: ``[C, C]`` float32 by site, summed over batches, visits and ranks.
        tokens: tokens they were summed over, on all ranks.
    """

    hessians: dict[str, Tensor]
    tokens: int


@torch.no_grad()
def collect_hessians(
    model: GPT, batches: Iterable[PackedBatch], *, count: int, progress: Callable[[int], None] | None = None
) -> Calibration:
    """Run the model over packed training batches and sum the Hessians of all its matrices.

    The model runs as it is: recurrence on or off, document masks from ``cu_seqlens``. When ``torch.distributed`` is
    initialized every rank must call this, each with batches of its own, and all get the sum over the ranks.

    Args:
        model: the model with the weights to be exported.
        batches: packed training batches, on any device; at most ``count`` are drawn over all ranks together.
        count: batches over all ranks; each rank runs ``ceil(count / ranks)``.
        progress: called with the number of batches this rank has done, after each.

    Raises:
        GolfError: no rank got a single token.
    """
    device = model.embedding.device
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    recorder = HessianRecorder(site_widths(model.config), device)
    tokens = 0
    for done, batch in enumerate(itertools.islice(batches, -(-count // ranks)), start=1):
        recorder.valid_rows = int(batch.cu_seqlens[-1])
        tokens += recorder.valid_rows
        batch = batch.to(device, non_blocking=True)
        model.features(batch.tokens, batch.cu_seqlens, recorder=recorder)
        if progress is not None:
            progress(done)
    if ranks > 1:
        total = torch.tensor(tokens, dtype=torch.int64, device=device)
        dist.all_reduce(total)
        tokens = int(total)
        for hessian in recorder.hessians.values():
            dist.all_reduce(hessian)
    if tokens == 0:
        raise GolfError("Calibration got no tokens; give it at least one packed batch of training data.")
    return Calibration(recorder.finish(), tokens)
