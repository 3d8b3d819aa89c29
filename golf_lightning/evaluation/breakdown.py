"""Where bits and seconds go: by position in the document, and by the document's length."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.scores import DocumentScores
from golf_lightning.evaluation.slots import WindowPlan

# B bins, N documents

Sums = npt.NDArray[np.float64]

EDGES = (0, *(2**i for i in range(5, 16)))
"""First position, or length, of each bin; the last bin is open. In targets."""


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Sums by bin of :data:`EDGES`, ``[B]`` float64 each. Those of ranks that shared a stream add up.

    Attributes:
        position_nats: nats of the targets at these positions of their documents.
        position_bytes: bytes of text that they stand for.
        length_nats: nats of the documents of these lengths.
        length_bytes: bytes of text of these documents.
        length_seconds: seconds of scoring, shared out by the rows that each document ran.
        length_targets: targets of these documents.
    """

    position_nats: Sums
    position_bytes: Sums
    length_nats: Sums
    length_bytes: Sums
    length_seconds: Sums
    length_targets: Sums

    @classmethod
    def of(
        cls, stream: DocumentStream, scores: DocumentScores, plan: WindowPlan, target_bytes: npt.NDArray[np.int64]
    ) -> "Breakdown":
        """The sums of one rank's scores.

        Args:
            stream: the documents.
            scores: their scores, with each target's; targets whose score was not kept count for no position.
            plan: how documents were cut.
            target_bytes: ``[targets]``, bytes of each target of the stream.
        """
        assert scores.target_nats is not None, "scores by position need keep_target_nats"
        nats = scores.target_nats.double().numpy()
        position = np.arange(len(nats)) - np.repeat(stream.starts, stream.targets)
        kept = np.isfinite(nats)
        scored_N = scores.targets.numpy() > 0
        work_N = plan.work(stream.targets) * scored_N
        seconds_N = scores.seconds * work_N / max(work_N.sum(), 1)

        def by_position(weights: npt.NDArray[np.generic]) -> Sums:
            return np.bincount(_bin(position[kept]), weights[kept], minlength=len(EDGES)).astype(np.float64)

        def by_length(weights_N: npt.NDArray[np.generic]) -> Sums:
            return np.bincount(_bin(stream.targets), weights_N * scored_N, minlength=len(EDGES)).astype(np.float64)

        return cls(
            by_position(nats),
            by_position(target_bytes),
            by_length(scores.nats.numpy()),
            by_length(scores.bytes.numpy()),
            by_length(seconds_N),
            by_length(scores.targets.numpy()),
        )

    def stacked(self) -> npt.NDArray[np.float64]:
        """All sums in one array ``[fields, B]``, for adding over ranks."""
        return np.stack([getattr(self, field.name) for field in fields(self)])

    @classmethod
    def unstacked(cls, sums: npt.NDArray[np.float64]) -> "Breakdown":
        """The inverse of :meth:`stacked`."""
        return cls(*sums)


def _bin(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.searchsorted(EDGES, values, side="right") - 1
