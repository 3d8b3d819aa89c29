"""What an export tells of itself: bytes, seconds, errors and clip points."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from golf_lightning.compression.banks import BankErrors
from golf_lightning.compression.budget import ByteBudget
from golf_lightning.compression.quantize import ROLE_OF, ROLES, QuantizedState


@dataclass(slots=True)
class ExportReport:
    """What an export did; :meth:`to_dict` gives plain JSON values.

    Attributes:
        artifact: path of the file.
        budget: bytes on disk against the limit; the caller decides when to ``budget.require()``.
        bytes_by_role: bytes in the file for each role, scales, vectors and header.
        seconds: of the stages ``calibrate``, ``sensitivities``, ``quantize``, ``encode`` and ``verify``.
        encodings: how many files were made until one filled the budget.
        calibration_tokens: tokens behind the Hessians, on all ranks; 0 without calibration.
        relative_error: by role, error over energy, summed over its matrices.
        nearest_relative_error: the same for round to nearest.
        raised_damping: number of matrices whose Hessian needed more damping than configured.
        predicted_nats: by role, the loss in nats per token that quantization should cost; only with rate control.
        k: by role, the clip point at 127 steps in standard deviations of a row, the geometric mean over its rows.
    """

    artifact: str
    budget: ByteBudget
    bytes_by_role: dict[str, int]
    seconds: dict[str, float]
    calibration_tokens: int
    relative_error: dict[str, float]
    nearest_relative_error: dict[str, float]
    raised_damping: int
    encodings: int
    predicted_nats: dict[str, float]
    k: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with ``total_bytes`` and ``headroom_bytes`` under ``budget``."""
        sums = {"total_bytes": self.budget.total_bytes, "headroom_bytes": self.budget.headroom_bytes}
        return asdict(self) | {"budget": asdict(self.budget) | sums}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ExportReport":
        """Rebuild a report from :meth:`to_dict`."""
        budget = values["budget"]
        sizes = ByteBudget(budget["artifact_bytes"], budget["code_bytes"], budget["limit_bytes"])
        return cls(**(values | {"budget": sizes}))


def predicted_nats(errors: dict[str, BankErrors]) -> dict[str, float]:
    """The loss by role that rate control has predicted, in nats per token; empty without it."""
    nats: dict[str, float] = {}
    for name, bank in errors.items():
        if bank.nats:
            nats[ROLE_OF[name]] = nats.get(ROLE_OF[name], 0.0) + sum(bank.nats)
    return nats


def clip_points(weights: dict[str, Tensor], state: QuantizedState) -> dict[str, float]:
    """127 steps by role, in standard deviations of a row of the unquantized ``weights``: the geometric mean."""
    logs: dict[str, list[Tensor]] = {}
    for name, matrix in state.matrices.items():
        spread = weights[name].detach().float().std(dim=-1, correction=0)
        used = spread > 0
        ratio = 127 * matrix.scale.float()[used] / spread[used]
        logs.setdefault(matrix.role, []).append(ratio.log().flatten().cpu())
    return {role: float(torch.cat(parts).mean().exp()) for role, parts in logs.items() if sum(p.numel() for p in parts)}


def relative_errors(errors: dict[str, BankErrors]) -> tuple[dict[str, float], dict[str, float]]:
    """Error over energy by role, of what was done and of round to nearest."""
    relative: dict[str, float] = {}
    nearest: dict[str, float] = {}
    for role in ROLES:
        banks = [bank for name, bank in errors.items() if ROLE_OF[name] == role]
        # Untrained output matrices are zero: no energy, no error.
        if energy := sum(sum(bank.energy) for bank in banks):
            relative[role] = sum(sum(bank.error) for bank in banks) / energy
            nearest[role] = sum(sum(bank.nearest) for bank in banks) / energy
    return relative, nearest
