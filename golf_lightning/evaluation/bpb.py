"""Bits per byte as a metric whose sums are exact over batches and ranks."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from golf_lightning.data.batch import IGNORED
from golf_lightning.data.byte_table import ByteTable
from golf_lightning.evaluation.scores import bits_per_byte

# T tokens, V vocabulary


@dataclass(frozen=True, slots=True)
class Score:
    """Sums of a scored run of targets.

    Attributes:
        nats: summed negative log-likelihood, float64.
        targets: number of scored targets.
        table_bytes: bytes of the targets by the tokenizer's table, the contest's denominator.
    """

    nats: float
    targets: int
    table_bytes: int

    @property
    def bpb(self) -> float:
        """Bits per byte against the table's bytes; NaN when nothing was scored."""
        return bits_per_byte(self.nats, self.table_bytes)

    @property
    def nats_per_target(self) -> float:
        """Mean loss; NaN when nothing was scored."""
        return self.nats / self.targets if self.targets else math.nan

    def to_dict(self, *, split_targets: int, split_text_bytes: int | None = None) -> dict[str, Any]:
        """The score for result.json.

        Args:
            split_targets: targets of the whole split; fewer scored ones label the score as partial.
            split_text_bytes: bytes of the split's source text, where they are known; they give ``bpb_text``, which
                differs from ``bpb`` only for a tokenizer that normalizes. Not given for a partial score.
        """
        partial = self.targets != split_targets
        values = {"bpb": self.bpb, "nats_per_target": self.nats_per_target, **asdict(self), "partial": partial}
        if split_text_bytes and not partial:
            values["bpb_text"] = bits_per_byte(self.nats, split_text_bytes)
        return values


class BitsPerByte(Metric):
    """``sum(nats) / ln 2 / sum(bytes)`` over all targets, with sums in float64 and int64.

    Args:
        table: bytes of each token.
    """

    full_state_update = False
    nats: Tensor
    targets: Tensor
    table_bytes: Tensor
    bytes_of: Tensor
    leading_space: Tensor
    is_text: Tensor

    def __init__(self, table: ByteTable) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("targets", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("table_bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # int32 throughout: Lightning broadcasts buffers before validation, and gloo knows neither int16 nor bool.
        tensors = {name: values.to(torch.int32) for name, values in table.as_tensors().items()}
        self.register_buffer("bytes_of", tensors["bytes_of"], persistent=False)
        self.register_buffer("leading_space", tensors["leading_space"], persistent=False)
        self.register_buffer("is_text", 1 - tensors["control"], persistent=False)

    @override
    def update(self, nll: Tensor, previous: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            nll: ``[T]`` nats of each target.
            previous: ``[T]`` the input token before each target.
            targets: ``[T]`` int64; ``IGNORED`` rows count for nothing.
        """
        scored_T = targets != IGNORED
        target_T = torch.where(scored_T, targets, 0)
        bytes_T = self.bytes_of[target_T] + self.leading_space[target_T] * self.is_text[previous]
        self.nats += torch.where(scored_T, nll, 0).sum(dtype=torch.float64)
        self.targets += scored_T.sum()
        self.table_bytes += torch.where(scored_T, bytes_T, 0).sum(dtype=torch.int64)

    @override
    def compute(self) -> Tensor:
        """Bits per byte, 0-d float64."""
        return self.nats / math.log(2) / self.table_bytes

    def score(self) -> Score:
        """The sums over all ranks; every rank calls it."""
        with self.sync_context():
            return Score(float(self.nats), int(self.targets), int(self.table_bytes))

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> torch.nn.Module:
        # A module-wide change of dtype (precision bf16-true) would round the float64 sums; only the device may change.
        def move(x: Tensor) -> Tensor:
            return x.to(fn(x).device)

        return super()._apply(move, exclude_state)
