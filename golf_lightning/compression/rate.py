"""Rate control: the steps of quantization that lose least at a given size of the file.

With an entropy coder, a weight of spread ``sigma`` and step ``d`` costs about ``log2(sigma / d)`` bits and a constant,
and its error, ``d^2`` times a constant, costs ``s/2 * h`` nats: ``s`` is the row's sensitivity and ``h`` the curvature
that GPTQ leaves of its input, the others corrected for. Least loss at given bytes means equal slope everywhere, that is
``d = c / sqrt(s h)`` with one ``c`` for the whole model, which sets the size of the file (reverse water-filling, Cover
and Thomas, 10.3). Nothing else is left to choose: the clip multiple of every row, matrix and role follows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from golf_lightning.compression.gptq import residual_curvature
from golf_lightning.compression.hessians import Calibration
from golf_lightning.compression.quantize import SMALLEST_SCALE, RolePrecision
from golf_lightning.compression.search import DISTORTION
from golf_lightning.model.config import GPTConfig, matrix_inputs

# N matrices of a bank, R rows (outputs)

SCALES_PER_OCTAVE = 8
"""Steps are rounded to this grid: it costs 0.1% of the error, and the scales shrink to 4 bits each."""
ROW_TRUST = 0.5
"""How far rows of one matrix follow their own sensitivity, as an exponent; the rest is the matrix's. Few batches
measure rows badly, and following them halfway lost least."""
LEAST_SHARE = 4e-4
"""A row counts as at least this fraction of its matrix's mean. Pieces that a few batches do not hold would otherwise
get steps so wide that their noise becomes likely."""
LEAST = 1e-20
"""Stands for the sensitivity or curvature of a matrix that nothing reaches."""
AIM_BELOW = 6_000
"""Bytes under the budget at which to aim; steps are continuous, so it could be less, but each try costs an encoding."""
SLACK = 20_000
MOST_TRIES = 8
OCTAVES = 24.0
"""Range of ``c`` above the finest; at its end hardly a code is left."""


@dataclass(slots=True)
class Steps:
    """Relative steps of all rows.

    Attributes:
        log2_NR: by parameter name, ``[N, R]``: the base-2 logarithm of the step at ``c = 1``, on the grid.
        floor_NR: likewise, the smallest step whose codes do not exceed 8 bits.
        spread_NR: likewise, the root mean square of the row, and the largest step: beyond it the trellis, which has no
            zero at every second step, would add noise.
        columns: likewise, C.
        trellis: whether codes will be levels of the trellis.
    """

    log2_NR: dict[str, Tensor]
    floor_NR: dict[str, Tensor]
    spread_NR: dict[str, Tensor]
    columns: dict[str, int]
    trellis: bool

    def share(self) -> None:
        """Take rank 0's steps, so that all ranks search alike; every rank calls it."""
        if dist.is_initialized():
            for tensors in (self.log2_NR, self.floor_NR, self.spread_NR):
                for tensor in tensors.values():
                    dist.broadcast(tensor, src=0)

    def at(self, log2_c: float) -> dict[str, Tensor]:
        """The float16 scales of all rows at a ``c``."""
        scales = {}
        for name, log2_NR in self.log2_NR.items():
            ceiling_NR = torch.maximum(_on_grid(self.spread_NR[name].clamp_min(SMALLEST_SCALE)), self.floor_NR[name])
            scale_NR = torch.exp2(log2_NR + log2_c).clamp(self.floor_NR[name], ceiling_NR)
            scales[name] = scale_NR.half()
        return scales

    def predicted_bytes(self, log2_c: float) -> float:
        """Bytes of the codes under a perfect coder of normal rows."""
        bits = 0.0
        for name, scale_NR in self.at(log2_c).items():
            ratio_NR = self.spread_NR[name] / scale_NR.float()
            if self.trellis:
                # Shrunk as GPTQ will do, and with quantizers of twice the step.
                ratio_NR = ratio_NR / 2 * ratio_NR.square() / (ratio_NR.square() + DISTORTION)
            bits += self.columns[name] * float(normal_bits(ratio_NR).sum(dtype=torch.float64))
        return bits / 8

    def finest(self) -> float:
        """``log2 c`` from which down no step gets finer."""
        gaps = [(self.floor_NR[name].log2() - log2_NR).min() for name, log2_NR in self.log2_NR.items()]
        return float(torch.stack(gaps).min())


def plan_steps(
    state_dict: dict[str, Tensor],
    calibration: Calibration,
    sensitivities: dict[str, Tensor],
    config: GPTConfig,
    *,
    damping: float,
    trellis: bool,
) -> Steps:
    """The steps of equal slope.

    Args:
        state_dict: float32 tensors of a GPT.
        calibration: Hessians by site.
        sensitivities: ``[N, R]`` by parameter name, see :mod:`golf_lightning.compression.sensitivity`.
        config: shape of the model.
        damping: as GPTQ will add it.
        trellis: whether codes will be levels of the trellis.
    """
    steps = Steps({}, {}, {}, {}, trellis)
    largest = RolePrecision(8, 1.0).largest
    for name, sites in matrix_inputs(config).items():
        weight_NRC = state_dict[name].detach().float()
        weight_NRC = weight_NRC.view(len(sites), *weight_NRC.shape[-2:])
        hessian_NCC = torch.stack([calibration.hessians[site] / calibration.tokens for site in sites])
        curvature_N1 = residual_curvature(name, hessian_NCC, damping).mean(dim=1, keepdim=True)
        mean_N1 = sensitivities[name].mean(dim=1, keepdim=True).clamp_min(LEAST)
        share_NR = (sensitivities[name] / mean_N1).clamp_min(LEAST_SHARE)
        log2_NR = -0.5 * (ROW_TRUST * share_NR.log2() + (mean_N1 * curvature_N1.clamp_min(LEAST)).log2())
        steps.log2_NR[name] = (log2_NR * SCALES_PER_OCTAVE).round() / SCALES_PER_OCTAVE
        # Rounding to float16 may lower a step by 2**-11, and a code of 127.06 is still 127.
        steps.floor_NR[name] = _on_grid((weight_NRC.abs().amax(dim=2) / largest).clamp_min(SMALLEST_SCALE))
        steps.spread_NR[name] = weight_NRC.square().mean(dim=2).sqrt()
        steps.columns[name] = weight_NRC.shape[2]
    return steps


def _on_grid(step_NR: Tensor) -> Tensor:
    return torch.exp2((step_NR.log2() * SCALES_PER_OCTAVE).ceil() / SCALES_PER_OCTAVE)


def normal_bits(ratio: Tensor) -> Tensor:
    """Entropy in bits of a normal variable of standard deviation ``ratio``, rounded to integers."""
    ratio = ratio.double().clamp_min(1e-3)
    # The rounded variable has the entropy of its sum with a uniform one.
    coarse = 0.5 * torch.log2((ratio.square() + 1 / 12) * 2 * math.pi * math.e)
    if not (small := ratio < 2).any():
        return coarse
    edges = torch.arange(0, 26, dtype=torch.float64, device=ratio.device) - 0.5
    cdf = torch.special.ndtr(edges / ratio[small].unsqueeze(-1))
    p = cdf.diff(dim=-1)
    terms = -torch.special.xlogy(p, p) / math.log(2)
    out = coarse.clone()
    out[small] = 2 * terms.sum(-1) - terms[..., 0]
    return out


def fill_budget(steps: Steps, budget: int, make: Callable[[dict[str, Tensor]], int]) -> int:
    """Find the ``c`` whose file ends less than ``SLACK`` bytes under a budget, never over it.

    The prediction is off by the scales, the vectors and the coder's own excess; the first file tells by how much.

    Args:
        steps: relative steps.
        budget: bytes that the file may take.
        make: quantizes with the given scales, encodes and returns the file's bytes; its last call is the one to keep.

    Returns:
        Number of calls of ``make``. A model whose finest steps leave more than ``SLACK`` bytes gets those; one that no
        steps make fit gets the coarsest, and is over the budget.
    """
    finest = steps.finest()
    # A first guess of what scales and spreads take: a byte a row.
    excess = float(sum(log2_NR.numel() for log2_NR in steps.log2_NR.values()))
    low, high = finest, finest + OCTAVES  # a file of `low` may be too large, one of `high` fits
    log2_c = _invert(steps, budget - AIM_BELOW - excess, low, high)
    for tries in range(1, MOST_TRIES + 1):
        size = make(steps.at(log2_c))
        if size <= budget and (size > budget - SLACK or log2_c == finest):
            return tries
        if size > budget and log2_c >= finest + OCTAVES:
            return tries
        low, high = (log2_c, high) if size > budget else (low, log2_c)
        excess = size - steps.predicted_bytes(log2_c)
        log2_c = _invert(steps, budget - AIM_BELOW - excess, low, high)
        if log2_c == low and low > finest:
            log2_c = (low + high) / 2
    make(steps.at(high))
    return MOST_TRIES + 1


def _invert(steps: Steps, target: float, low: float, high: float) -> float:
    """The finest ``c`` in a range whose predicted size is at most ``target``, by bisection; else the coarsest."""
    if steps.predicted_bytes(low) <= target:
        return low
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if steps.predicted_bytes(middle) > target else (low, middle)
    return high
