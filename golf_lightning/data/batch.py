"""The one form in which text reaches the model."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from golf_lightning.kernels.cross_entropy import IGNORED as IGNORED


@dataclass(slots=True)
class PackedBatch:
    """A flat run of tokens of several documents, with the boundaries that attention must not cross.

    Attributes:
        tokens: ``[T]`` int64, input tokens; padding holds token 0.
        targets: ``[T]`` int64, the token that follows each input; ``IGNORED`` where nothing is scored.
        cu_seqlens: ``[S + 1]`` int32, segment starts and the end of the last one, padded to one fixed length by
            repeating the last entry. Rows past ``cu_seqlens[-1]`` are padding.
        next_position: position in the token stream at which the next batch starts (training only).
    """

    tokens: Tensor
    targets: Tensor
    cu_seqlens: Tensor
    next_position: int = 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """The same batch on ``device``. Lightning moves batches through this method."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "PackedBatch":
        """The same batch in page-locked host memory, from which copies to a GPU are asynchronous."""
        return replace(
            self,
            tokens=self.tokens.pin_memory(),
            targets=self.targets.pin_memory(),
            cu_seqlens=self.cu_seqlens.pin_memory(),
        )
