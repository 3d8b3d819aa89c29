"""Every number of the optimizer, with its unit."""

from dataclasses import dataclass
from typing import Literal

import torch

from golf_lightning.errors import GolfError
from golf_lightning.optim.newton_schulz import COEFFICIENTS

CoefficientSet = Literal["quintic", "polar_express"]
NewtonSchulzDtype = Literal["auto", "bfloat16", "float32", "float64"]
CommunicationDtype = Literal["bfloat16", "float32"]


@dataclass(kw_only=True)
class OptimizerConfig:
    """Rates, schedules and number formats of Muon (banks) and AdamW (embedding, vectors). Defaults are the recipe's.

    Rates are per step and peak values: the schedule multiplies all of them by one factor. "Fraction" means fraction of
    the training clock, or of the steps when no clock is set.

    Args:
        muon_lr: learning rate of the banks, before the factor ``sqrt(max(1, rows / columns))`` of each matrix.
        muon_wd: decoupled weight decay of the banks; a step multiplies weights by ``1 - lr * wd``.
        momentum: Muon's momentum after its ramp.
        momentum_start: Muon's momentum at step 0.
        momentum_warmup_steps: length of the momentum ramp, in optimizer steps; 0 starts at ``momentum``.
        momentum_warmup_fraction: length of the same ramp as a fraction of the run; the shorter of the two counts.
        embedding_lr: learning rate of the tied embedding (AdamW).
        embedding_wd: decoupled weight decay of the embedding.
        vector_lr: learning rate of gains, mixes, gates and lane scalars (AdamW).
        vector_wd: decoupled weight decay of the same.
        beta1: AdamW's decay of the first moment.
        beta2: AdamW's decay of the second moment.
        eps: AdamW's epsilon, added to the root of the second moment.
        clip_norm: largest global L2 norm of the gradient averaged over ranks; 0 turns the clip off.
        warmdown_fraction: last fraction of the run over which the learning rates fall linearly.
        min_lr: where they end, as a fraction of the peak.
        coefficients: Newton-Schulz polynomials, ``quintic`` (5 equal steps) or ``polar_express`` (5 different steps).
        communication_dtype: format in which bank and embedding gradients and bank updates travel between ranks.
        newton_schulz_dtype: format of the Newton-Schulz products; ``auto`` is bfloat16 on CUDA and float32 elsewhere.
    """

    muon_lr: float = 0.022
    muon_wd: float = 0.095
    momentum: float = 0.97
    momentum_start: float = 0.92
    momentum_warmup_steps: int = 1500
    momentum_warmup_fraction: float = 0.31
    embedding_lr: float = 0.03
    embedding_wd: float = 0.085
    vector_lr: float = 0.02
    vector_wd: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 0.3
    warmdown_fraction: float = 0.72
    min_lr: float = 0.0
    coefficients: CoefficientSet = "quintic"
    communication_dtype: CommunicationDtype = "bfloat16"
    newton_schulz_dtype: NewtonSchulzDtype = "auto"

    def __post_init__(self) -> None:
        not_negative = ("muon_lr", "muon_wd", "embedding_lr", "embedding_wd", "vector_lr", "vector_wd", "clip_norm")
        for name in (*not_negative, "momentum_warmup_steps"):
            # A NaN fails every comparison, so each check asks for what is right.
            if not 0 <= getattr(self, name) < float("inf"):
                raise GolfError(f"{name} is {getattr(self, name)}; it must be 0 or more, and finite.")
        for name in ("momentum", "momentum_start", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise GolfError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        for name in ("momentum_warmup_fraction", "warmdown_fraction", "min_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise GolfError(f"{name} is {getattr(self, name)}; it is a fraction, so choose between 0 and 1.")
        if not 0 < self.eps < float("inf"):
            raise GolfError(f"eps is {self.eps}; it must be above 0.")
        if self.coefficients not in COEFFICIENTS:
            raise GolfError(f"coefficients is {self.coefficients!r}; choose one of {', '.join(sorted(COEFFICIENTS))}.")
        if self.communication_dtype not in ("bfloat16", "float32"):
            raise GolfError(f"communication_dtype is {self.communication_dtype!r}; choose bfloat16 or float32.")
        if self.newton_schulz_dtype not in ("auto", "bfloat16", "float32", "float64"):
            raise GolfError(
                f"newton_schulz_dtype is {self.newton_schulz_dtype!r}; choose auto, bfloat16, float32 or float64."
            )

    def newton_schulz_dtype_on(self, device: torch.device) -> torch.dtype:
        """The format of the Newton-Schulz products on ``device``."""
        if self.newton_schulz_dtype == "auto":
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        return DTYPES[self.newton_schulz_dtype]


DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
"""Formats by the names that configurations use."""
