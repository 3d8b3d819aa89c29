"""What is in an artifact: bytes, bits, and how far the coder is from the entropy of what it coded."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from golf_lightning.compression.artifact import Artifact
from golf_lightning.compression.quantize import ROLES, QuantizedTensor
from golf_lightning.compression.trellis import on_trellis

# N matrices of a bank, R rows, C columns, V values that a code takes


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """The codes of a role, or of one bank.

    Attributes:
        weights: number of codes.
        bits: width of a code, the largest if several.
        bytes: coded size; scales are counted apart.
        bits_per_weight: the same per code.
        order_0_bits: entropy per code of one distribution for each bank; on the trellis, whose state tells whether the
            next level is even, of one distribution of even levels and one of odd ones.
        row_normal_bits: length per code with a normal distribution of each row's own spread, cut at half codes: what a
            coder that knows the rows' spreads, and the trellis where there is one, and nothing else can reach.
        clip_sd: clip point in standard deviations of a row, the geometric mean over rows that are not zero.
        largest_code: the largest magnitude of a code.
        clipped: share of codes at the clip point.
        zeros: share of codes that are zero.
    """

    weights: int
    bits: int
    bytes: int
    bits_per_weight: float
    order_0_bits: float
    row_normal_bits: float
    clip_sd: float
    largest_code: int
    clipped: float
    zeros: float


@dataclass(frozen=True, slots=True)
class BankCounts:
    """How often each row of a bank holds each value.

    Attributes:
        name: the bank, or the embedding.
        bits: width of a code.
        counts_NRV: ``[N, R, V]`` int64; value v stands for code ``v - largest``.
        clip_sd_NR: ``[N, R]`` float64, clip point of each row in its standard deviations; infinite for rows of zeros.
        trellis: whether all codes follow the trellis, so that it is known of each whether it is even.
    """

    name: str
    bits: int
    counts_NRV: Tensor
    clip_sd_NR: Tensor
    trellis: bool

    @property
    def largest(self) -> int:
        """The largest magnitude that a code may have."""
        return 2 ** (self.bits - 1) - 1

    @property
    def codes_V(self) -> Tensor:
        """The codes that the last dimension of the counts stands for, float64."""
        return torch.arange(-self.largest, self.largest + 1, dtype=torch.float64)

    @property
    def spread_NR1(self) -> Tensor:
        """Root mean square of each row's codes, ``[N, R, 1]``; of a row of zeros, so little that zero is sure."""
        squares_NR1 = (self.counts_NRV * self.codes_V**2).sum(-1, keepdim=True)
        return (squares_NR1 / self.counts_NRV.sum(-1, keepdim=True)).sqrt().clamp_min(1e-3)

    def row_normal_bits(self) -> Tensor:
        """Ideal length in bits of each row, ``[N, R]`` float64, under a normal distribution of its own spread."""
        # On the left of zero, where neighbouring probabilities keep their digits, and as logarithms: no underflow.
        distance_V, spread_NR1 = self.codes_V.abs(), self.spread_NR1
        near_NRV = torch.special.log_ndtr(-(distance_V - 0.5) / spread_NR1)
        far_NRV = torch.special.log_ndtr(-(distance_V + 0.5) / spread_NR1)
        log_NRV = near_NRV + (-torch.expm1(far_NRV - near_NRV)).log()
        if self.trellis:
            for codes_V in self._classes():
                log_NRV[..., codes_V] -= log_NRV[..., codes_V].logsumexp(-1, keepdim=True)
        return -(self.counts_NRV * log_NRV).sum(-1) / math.log(2)

    def order_0_bits(self) -> float:
        """Bits of all codes together under one distribution, or on the trellis one of even and one of odd codes."""
        counts_V = self.counts_NRV.sum((0, 1))
        return sum(_entropy(counts_V[codes_V]) for codes_V in self._classes())

    def _classes(self) -> list[Tensor]:
        """Masks ``[V]`` of the codes among which a decoder must choose: all, or even and odd ones."""
        odd_V = self.codes_V % 2 != 0
        return [~odd_V, odd_V] if self.trellis else [torch.ones_like(odd_V)]

    def expected_V(self) -> Tensor:
        """Shares of the codes if each row were normal with its own spread, ``[V]`` float64."""
        low, high = ((self.codes_V + side) / self.spread_NR1 for side in (-0.5, 0.5))
        return (torch.special.ndtr(high) - torch.special.ndtr(low)).mean((0, 1))


def count_codes(name: str, matrix: QuantizedTensor) -> BankCounts:
    """Count the codes of a bank by row."""
    largest = 2 ** (matrix.bits - 1) - 1
    values, columns = 2 * largest + 1, matrix.codes.shape[-1]
    codes_QC = matrix.codes.reshape(-1, columns).long() + largest
    rows = codes_QC.shape[0]
    flat = codes_QC + values * torch.arange(rows).unsqueeze(1)
    counts_NRV = torch.bincount(flat.flatten(), minlength=rows * values).view(-1, matrix.codes.shape[-2], values)
    codes_V = torch.arange(-largest, largest + 1, dtype=torch.float64)
    mean_NR1 = (counts_NRV * codes_V).sum(-1, keepdim=True) / columns
    variance_NR = (counts_NRV * (codes_V - mean_NR1) ** 2).sum(-1) / max(1, columns - 1)
    codes_MRC = matrix.codes.reshape(-1, *matrix.codes.shape[-2:]).numpy()
    return BankCounts(name, matrix.bits, counts_NRV, largest / variance_NR.sqrt(), on_trellis(codes_MRC))


def code_facts(banks: list[BankCounts], coded_bytes: int) -> CodeFacts:
    """Facts about banks together.

    Args:
        banks: counts of at least one bank.
        coded_bytes: what they take in the file.
    """
    weights = sum(int(bank.counts_NRV.sum()) for bank in banks)
    clip = torch.cat([bank.clip_sd_NR.flatten() for bank in banks])
    pooled = [bank.counts_NRV.sum((0, 1)) for bank in banks]
    taken = [bank.codes_V[counts > 0].abs().max() for bank, counts in zip(banks, pooled, strict=True)]
    return CodeFacts(
        weights=weights,
        bits=max(bank.bits for bank in banks),
        bytes=coded_bytes,
        bits_per_weight=8 * coded_bytes / weights,
        order_0_bits=sum(bank.order_0_bits() for bank in banks) / weights,
        row_normal_bits=float(sum(bank.row_normal_bits().sum() for bank in banks)) / weights,
        clip_sd=float(clip[clip.isfinite()].log().mean().exp()) if clip.isfinite().any() else math.inf,
        largest_code=int(max(taken)),
        clipped=sum(int(counts[0] + counts[-1]) for counts in pooled) / weights,
        zeros=sum(int(counts[bank.largest]) for bank, counts in zip(banks, pooled, strict=True)) / weights,
    )


def _entropy(counts_V: Tensor) -> float:
    """Bits of all codes together under their own frequencies."""
    counts = counts_V[counts_V > 0].double()
    return float((counts * (counts.sum() / counts).log2()).sum())


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """An artifact in figures.

    Attributes:
        file_bytes: size of the file.
        parameters: parameters of the model.
        coder: name of the entropy coder.
        recurrent: whether depth recurrence is on.
        tokenizer_sha256: hash of the tokenizer's file.
        model: the model's configuration.
        bytes: of each role, ``scales``, ``vectors`` and ``header``; they add up to the file.
        values: number of ``scales`` and ``vectors``, two bytes each before coding.
        roles: facts about the codes of each role.
        banks: the same for each section of codes.
    """

    file_bytes: int
    parameters: int
    coder: str
    recurrent: bool
    tokenizer_sha256: str
    model: dict[str, Any]
    bytes: dict[str, int]
    values: dict[str, int]
    roles: dict[str, CodeFacts]
    banks: dict[str, CodeFacts]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a clip point that is infinite, of rows of zeros alone, is null."""
        values = asdict(self)
        for part in (*values["roles"].values(), *values["banks"].values()):
            part["clip_sd"] = part["clip_sd"] if math.isfinite(part["clip_sd"]) else None
        return values


def artifact_facts(artifact: Artifact, counts: dict[str, BankCounts]) -> ArtifactFacts:
    """Everything about an artifact that a table can say.

    Args:
        artifact: as read.
        counts: from :func:`count_codes`, of every matrix by name.
    """
    state = artifact.state
    scales = sum(matrix.scale.numel() for matrix in state.matrices.values())
    vectors = sum(vector.numel() for vector in state.vectors.values())
    roles = {role: [counts[name] for name, matrix in state.matrices.items() if matrix.role == role] for role in ROLES}
    sections = {
        section: [counts[name] for name in section.split("+")]
        for section in artifact.bytes_by_section
        if section.split("+")[0] in counts
    }
    return ArtifactFacts(
        file_bytes=artifact.file_bytes,
        parameters=sum(matrix.codes.numel() for matrix in state.matrices.values()) + vectors,
        coder=artifact.coder,
        recurrent=artifact.recurrent,
        tokenizer_sha256=artifact.tokenizer_sha256,
        model=artifact.config.to_dict(),
        bytes=artifact.bytes_by_role,
        values={"scales": scales, "vectors": vectors},
        roles={role: code_facts(banks, artifact.bytes_by_role[role]) for role, banks in roles.items()},
        banks={name: code_facts(banks, artifact.bytes_by_section[name]) for name, banks in sections.items()},
    )
