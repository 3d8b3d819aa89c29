"""One pass at a time: score a chunk of each document of a step, then let those that go on learn from it."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream, Ids
from golf_lightning.evaluation.slot_state import SlotState
from golf_lightning.evaluation.slots import Step
from golf_lightning.kernels.cross_entropy import IGNORED
from golf_lightning.model.adapters import DocumentAdapters, adapter_shapes
from golf_lightning.model.gpt import GPT

# N documents, S documents of a step, W rows of a padded window, C targets of a chunk, T = S W rows, D width

TokenBytes = Callable[[Ids, Ids], npt.NDArray[np.int64]]
"""Bytes of each target from the tokens before the targets and the targets, as ``ByteTable.count`` gives them."""


class Scorer:
    """Runs steps and keeps the sums on the device, so that no step waits for the one before.

    Use it under :func:`~golf_lightning.evaluation.ttt.score_documents`, which sets up the model and checks the outcome.

    Attributes:
        nats: ``[N]`` float64 on the device, sum of each document's scores.
        counts: ``[N]`` int64 on the device, targets scored of each document.
        target_nats: ``[targets + 1]`` or None, score of each target of the stream; the last entry means nothing.
        bytes_before: ``[targets + 1]`` int64, bytes of text before each target of the stream.
        targets_done, bytes_done, documents_done, work_done: sums over the steps so far; work is tokens of windows.

    Raises:
        GolfError: a token is outside the model's vocabulary.
    """

    def __init__(
        self, model: GPT, stream: DocumentStream, config: TTTConfig, token_bytes: TokenBytes, *, keep_target_nats: bool
    ) -> None:
        self.model, self.stream, self.config = model, stream, config
        self.device = model.embedding.device
        count = len(stream)
        tokens = np.asarray(stream.tokens[: stream.total_targets + 1])
        if (largest := int(tokens.max())) >= model.config.vocab_size:
            raise GolfError(
                f"The split holds token {largest} but the model has {model.config.vocab_size} pieces; "
                "score it with the data it was trained for."
            )
        self.tokens = torch.from_numpy(tokens.astype(np.int32)).to(self.device)
        self.starts = torch.from_numpy(stream.starts).to(self.device)
        # Bytes before each target of the stream, so that a chunk's bytes are one subtraction.
        self.bytes_before = np.concatenate([[0], np.cumsum(token_bytes(tokens[:-1], tokens[1:]), dtype=np.int64)])
        self.nats = torch.zeros(count, dtype=torch.float64, device=self.device)
        self.counts = torch.zeros(count, dtype=torch.int64, device=self.device)
        self.targets_done = self.bytes_done = self.documents_done = self.work_done = 0
        dtype = torch.promote_types(model.compute_dtype, torch.float32)
        self.target_nats: Tensor | None = None
        if keep_target_nats:  # one entry more than targets: it takes what padding writes
            self.target_nats = torch.full((stream.total_targets + 1,), torch.nan, dtype=dtype, device=self.device)
        self.state: SlotState | None = None
        if config.lr > 0:
            shapes = adapter_shapes(model.config, model.plan.depth, config.adapters)
            self.state = SlotState(shapes, config, dtype=dtype, device=self.device)

    def run(self, step: Step) -> None:
        """Score one chunk of each document of the step, then learn from those that have more to come."""
        fields = np.stack([step.slots, step.documents, step.first, step.length, step.row, step.count])
        slots, documents, first, length, row, count = self._upload(fields).unbind(0)
        if self.state is not None and step.fresh.any():
            fresh = self._upload(np.flatnonzero(step.fresh))
            self.state.reset(slots[fresh], documents[fresh])
        begin = self.starts[documents] + first
        inputs_SW = self._gather(begin, length, step.width, fill=0)
        targets_SC = self._gather(begin + row + 1, count, self.config.chunk, fill=IGNORED)
        leaves: dict[str, Tensor] = {}
        if self.state is not None:
            leaves = self.state.leaves(slots, all_slots=np.array_equal(step.slots, np.arange(self.config.slots)))
        trains = self.state is not None and bool(step.trains.any())
        with torch.set_grad_enabled(trains):
            nll_SC = self._forward(inputs_SW, targets_SC, row, leaves)
        self._keep(nll_SC.detach(), targets_SC, documents, begin + row)
        self._count(step)
        if trains:
            assert self.state is not None
            # Where a document ends its loss has no reader: the slot is reset before it is used again.
            loss = nll_SC.sum() / self.config.chunk
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            rows = np.flatnonzero(step.trains)
            self.state.update(step.slots[rows].tolist(), rows.tolist(), grads)

    def _forward(self, inputs_SW: Tensor, targets_SC: Tensor, row_S: Tensor, leaves: dict[str, Tensor]) -> Tensor:
        """Nats of the chunks' targets, ``[S, C]``."""
        count, width = inputs_SW.shape
        adapters = None
        if leaves:
            adapters = DocumentAdapters(leaves, dtype=self.model.compute_dtype, scale=self.config.adapters.scale)
        cu_seqlens = torch.arange(count + 1, device=self.device, dtype=torch.int32) * width
        n_TD = self.model.features(inputs_SW.flatten(), cu_seqlens, adapters=adapters)
        rows_SC = row_S[:, None] + torch.arange(targets_SC.shape[1], device=self.device)
        index_SCD = rows_SC[:, :, None].expand(-1, -1, n_TD.shape[1])
        n_SCD = n_TD.unflatten(0, (count, width)).gather(1, index_SCD)
        return self.model.nll(n_SCD.flatten(0, 1), targets_SC.flatten(), adapters=adapters).view_as(targets_SC)

    def _keep(self, nll_SC: Tensor, targets_SC: Tensor, documents: Tensor, position_S: Tensor) -> None:
        scored_SC = targets_SC != IGNORED
        self.nats.index_add_(0, documents, nll_SC.double().sum(1))
        self.counts.index_add_(0, documents, scored_SC.sum(1))
        if self.target_nats is not None:
            place_SC = position_S[:, None] + torch.arange(targets_SC.shape[1], device=self.device)
            place_SC = torch.where(scored_SC, place_SC, self.target_nats.shape[0] - 1)
            self.target_nats[place_SC.flatten()] = nll_SC.flatten()

    def _count(self, step: Step) -> None:
        position = self.stream.starts[step.documents] + step.first + step.row
        self.targets_done += int(step.count.sum())
        self.bytes_done += int((self.bytes_before[position + step.count] - self.bytes_before[position]).sum())
        self.documents_done += int((~step.trains).sum())
        self.work_done += step.width * len(step.slots)

    def _gather(self, begin_S: Tensor, count_S: Tensor, width: int, *, fill: int) -> Tensor:
        """``width`` tokens from each position, ``[S, width]`` int64, with ``fill`` after the first ``count``."""
        offset = torch.arange(width, device=self.device)
        place = (begin_S[:, None] + offset).clamp_(max=self.tokens.shape[0] - 1)
        return torch.where(offset < count_S[:, None], self.tokens[place].long(), fill)

    def _upload(self, values: npt.NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
