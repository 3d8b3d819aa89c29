"""What scoring a split yields: nats, targets and bytes of every document."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# N documents of the stream


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreProgress:
    """Where scoring stands.

    Attributes:
        documents: documents finished.
        documents_total: documents to score.
        targets: targets scored.
        targets_total: targets to score.
        bytes: bytes of text that the scored targets stand for.
        nats: their negative log-likelihood, in nats.
        seconds: since scoring began, or went on after an interruption.
        projected_seconds: what scoring will have taken at its end, from the tokens of all windows still to run.
    """

    documents: int
    documents_total: int
    targets: int
    targets_total: int
    bytes: int
    nats: float
    seconds: float
    projected_seconds: float

    @property
    def seconds_left(self) -> float:
        """What scoring will still take."""
        return max(self.projected_seconds - self.seconds, 0.0)

    @property
    def bpb(self) -> float:
        """Bits per byte so far; NaN before any byte."""
        return bits_per_byte(self.nats, self.bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentScores:
    """The scores of a stream's documents. Sums of ranks that shared a stream add up.

    Attributes:
        nats: ``[N]`` float64, negative log-likelihood of each document in nats; 0 for documents not asked for.
        targets: ``[N]`` int64, targets scored, as counted on the device where they were scored.
        bytes: ``[N]`` int64, bytes of text that the scored targets stand for.
        partial: whether the split holds documents that were not scored.
        seconds: what scoring took, without warming up, over all runs where it was interrupted.
        warm_up_seconds: what compiling and recording took before it, on noise, as often as it was done.
        target_nats: ``[targets of the stream]``, nats of each target in the stream's order, NaN where not asked for;
            kept on request.
    """

    nats: Tensor
    targets: Tensor
    bytes: Tensor
    partial: bool
    seconds: float
    warm_up_seconds: float = 0.0
    target_nats: Tensor | None = None

    @property
    def total_nats(self) -> float:
        """Nats of all documents."""
        return float(self.nats.sum())

    @property
    def total_targets(self) -> int:
        """Targets of all documents."""
        return int(self.targets.sum())

    @property
    def total_bytes(self) -> int:
        """Bytes of all documents."""
        return int(self.bytes.sum())

    @property
    def mean_nats(self) -> float:
        """Nats per target."""
        return self.total_nats / self.total_targets

    @property
    def bpb(self) -> float:
        """Bits per byte; NaN where the targets stand for no text."""
        return bits_per_byte(self.total_nats, self.total_bytes)

    def to_dict(self) -> dict[str, Any]:
        """The totals as plain JSON values."""
        return {
            "bpb": self.bpb if self.total_bytes else None,
            "nats": self.total_nats,
            "mean_nats": self.mean_nats,
            "targets": self.total_targets,
            "bytes": self.total_bytes,
            "documents": int(torch.count_nonzero(self.targets)),
            "partial": self.partial,
            "seconds": self.seconds,
            "warm_up_seconds": self.warm_up_seconds,
        }


def bits_per_byte(nats: float, count: int) -> float:
    """``nats / ln 2 / count``; NaN for no bytes."""
    return nats / math.log(2) / count if count else math.nan
