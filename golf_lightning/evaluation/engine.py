"""One pass of test-time training on the device: score a chunk of some documents, then learn from it.

A pass has one of a few fixed shapes. Everything it reads lies in buffers that stay where they are, so on a GPU each
shape is recorded once as a CUDA graph, before any document is seen, and a pass costs the host one small upload and one
launch.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.shapes import MOST_TOGETHER, PassShape, pass_shapes, window_plan
from golf_lightning.evaluation.slot_state import SlotState
from golf_lightning.evaluation.slots import Step
from golf_lightning.kernels.backend import choose_kernels
from golf_lightning.kernels.chunk_attention import Chunks, Kept, chunk_attention, keep_, places
from golf_lightning.kernels.cross_entropy import IGNORED
from golf_lightning.kernels.low_rank import RowSlots
from golf_lightning.kernels.slot_adamw import Learning
from golf_lightning.model.adapters import DocumentAdapters, adapter_groups
from golf_lightning.model.gpt import GPT
from golf_lightning.model.injection import Attend, Context

# N documents, S documents of a pass, T rows, C targets of a chunk, c rows of a chunk with padding, D width, P slots

SPAN = 128
"""Rows that an adapter's program takes at most: wide ones read a slot's matrices less often."""

FIELDS = 8
"""Numbers that describe a document's part in a pass."""


class Engine:
    """Runs passes and keeps every sum on the device, so that no pass waits for the one before.

    Args:
        model: frozen, its rotary table long enough.
        config: see :class:`~golf_lightning.evaluation.config.TTTConfig`.
        targets: targets of the stream to be scored.
        documents: documents of that stream.
        keep_target_nats: keep the score of each target.

    Attributes:
        plan: how documents are cut, padded as the kernels here want it.
        nats: ``[N + 1]`` float64, sum of each document's scores; the last entry takes what padding writes.
        counts: ``[N + 1]`` int64, targets scored of each document, likewise.
        target_nats: ``[targets + 1]`` or None, score of each target of the stream; the last entry means nothing.
    """

    def __init__(
        self, model: GPT, config: TTTConfig, *, targets: int, documents: int, keep_target_nats: bool = False
    ) -> None:
        self.model, self.config = model, config
        self.device = device = model.embedding.device
        self.backend = choose_kernels(model.kernels, device, model.compute_dtype)
        cached = config.mode == "cached"
        self.plan = window_plan(config)
        self.chunk_rows = self.plan.chunk_rows
        self.shapes = pass_shapes(config, self.plan) if device.type == "cuda" else []
        dtype = torch.promote_types(model.compute_dtype, torch.float32)
        self.nats = torch.zeros(documents + 1, dtype=torch.float64, device=device)
        self.counts = torch.zeros(documents + 1, dtype=torch.int64, device=device)
        self.target_nats: Tensor | None = None
        if keep_target_nats:
            self.target_nats = torch.full((targets + 1,), torch.nan, dtype=dtype, device=device)
        # Noise until a stream is loaded: warming up must see none of it.
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.config.vocab_size, (targets + 1,), generator=generator, dtype=torch.int32)
        self.tokens = tokens.to(device)
        self.starts: npt.NDArray[np.int64] = np.zeros(documents, dtype=np.int64)
        self.groups = adapter_groups(model.config, model.plan.depth, config.adapters) if config.lr > 0 else []
        self.state: SlotState | None = None
        if self.groups:
            self.state = SlotState(
                self.groups, model.config.width, config,
                dtype=dtype, compute_dtype=model.compute_dtype, device=device,
            )  # fmt: skip
        self.kept: list[Kept] = []
        if cached:
            ring = -(-config.window // config.chunk) * config.chunk
            heads, dim = model.config.kv_heads, model.config.head_dim
            whole = (model.plan.depth, config.slots + 1, ring, heads, dim)
            keys, values = (torch.zeros(whole, dtype=model.compute_dtype, device=device) for _ in range(2))
            self.kept = [Kept(k, v) for k, v in zip(keys.unbind(0), values.unbind(0), strict=True)]
        self._fields: dict[PassShape, Tensor] = {}
        self._graphs: dict[PassShape, torch.cuda.CUDAGraph] = {}

    @property
    def most(self) -> PassShape:
        """The most rows and documents that a pass may have."""
        if self.shapes:
            return self.shapes[0]
        return PassShape(max(self.config.rows, self.plan.window_rows), min(self.config.slots, MOST_TOGETHER))

    def warm_up(self) -> None:
        """Compile and record every shape, on noise; sums and slots are as new afterwards."""
        for shape in self.shapes:
            self._fields[shape] = self._upload(self._noise(shape))
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self._pass(shape, self._fields[shape])
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self._graphs.values())).pool() if self._graphs else None
            with torch.cuda.graph(graph, pool=pool):
                self._pass(shape, self._fields[shape])
            self._graphs[shape] = graph
        if self.state is not None and self.shapes:
            # Compiles what only a document's start runs.
            slot = torch.full((1,), self.state.empty, dtype=torch.int64, device=self.device)
            self.state.reset(slot, slot)
        for total in (self.nats, self.counts):
            total.zero_()
        if self.target_nats is not None:
            self.target_nats.fill_(torch.nan)

    def load(self, tokens: npt.NDArray[np.integer], starts: npt.NDArray[np.int64]) -> None:
        """Take a stream: its tokens, and where each document starts."""
        self.tokens.copy_(torch.from_numpy(np.asarray(tokens).astype(np.int32)))
        self.starts = starts

    def run(self, step: Step) -> None:
        """Score one chunk of each document of the step, then learn from those that have more to come."""
        needed = PassShape(int(step.rows.sum()), len(step.slots))
        shape = next((shape for shape in reversed(self.shapes) if shape.holds(needed)), needed)
        if self.state is not None and step.fresh.any():
            fresh = self._upload(np.stack([step.slots[step.fresh], step.documents[step.fresh]]))
            self.state.reset(fresh[0], fresh[1])
        fields = self._upload(self._describe(step, shape))
        if shape in self._graphs:
            self._fields[shape].copy_(fields, non_blocking=True)
            self._graphs[shape].replay()
        else:
            self._pass(shape, fields)

    def _describe(self, step: Step, shape: PassShape) -> npt.NDArray[np.int64]:
        """``[FIELDS, S]``: the step as the device wants it, filled up with nothing."""
        empty = self.config.slots
        fields = np.zeros((FIELDS, shape.documents), dtype=np.int64)
        fields[:2], fields[7] = empty, len(self.counts) - 1
        begin = self.starts[step.documents] + step.first
        learner = np.where(step.trains, step.slots, empty)
        columns = (step.slots, learner, begin, step.first + step.row, step.rows, step.row, step.count, step.documents)
        fields[:, : len(step.slots)] = np.stack(columns)
        return fields

    def _noise(self, shape: PassShape) -> npt.NDArray[np.int64]:
        """A pass that fills a shape, on slots of no document."""
        fields = np.zeros((FIELDS, shape.documents), dtype=np.int64)
        fields[:2], fields[7] = self.config.slots, len(self.counts) - 1
        fields[4] = shape.rows // shape.documents // self.plan.tile * self.plan.tile
        fields[6] = min(self.config.chunk, len(self.tokens) - 1)
        return fields

    def _pass(self, shape: PassShape, fields: Tensor) -> None:
        slot_S, learner_S, begin_S, position_S, rows_S, row_S, count_S, document_S = fields.unbind(0)
        bounds = F.pad(rows_S.cumsum(0), (1, 0)).int()
        inputs_T = self._inputs(shape, begin_S, row_S + count_S, bounds)
        chunk_C = torch.arange(self.chunk_rows, device=self.device)
        place_Sc = begin_S[:, None] + row_S[:, None] + chunk_C
        within_Sc = chunk_C < count_S[:, None]
        target_Sc = self.tokens[(place_Sc + 1).clamp_(max=self.tokens.shape[0] - 1)].long()
        targets = torch.where(within_Sc, target_Sc, IGNORED).flatten()
        learner, slot = learner_S.int(), slot_S.int()
        chunk_bounds = torch.arange(shape.documents + 1, device=self.device, dtype=torch.int32) * self.chunk_rows
        of_head = {"total": shape.documents * self.chunk_rows, "tile": self.chunk_rows}
        span = min(SPAN, self.chunk_rows)
        heads = rows = RowSlots(chunk_bounds, slot, learner, **of_head, span=span, last=self.config.slots)
        if not self.plan.cached:
            of_rows = {"total": shape.rows, "tile": self.plan.tile}
            rows = RowSlots(bounds, slot, learner, **of_rows, span=SPAN, last=self.config.slots)
        at_S = (bounds[:-1] + row_S)[:, None]
        chunk_rows = None if self.plan.cached else (at_S + chunk_C).clamp_(max=shape.rows - 1).flatten()
        chunks = Chunks(slot_S.int(), position_S.int(), self.config.chunk, self.config.window)
        for turn in range(self.config.steps):
            learning = None if self.state is None else self.state.learning(learner)
            with torch.set_grad_enabled(self.state is not None):
                nll = self._forward(inputs_T, targets, bounds, chunk_rows, rows, heads, chunks, learning, turn == 0)
            if turn == 0:
                self._add(nll.detach().view_as(within_Sc), within_Sc, document_S, place_Sc)
            if self.state is None or learning is None:
                return
            # Where a document ends its loss has no reader: its slot learns nothing and is reset before it is used.
            loss = nll.sum() / self.config.chunk
            if self.backend == "triton":
                loss.backward()
                if learning.aside is not None:
                    learning.aside.join()
                continue
            leaves = self.state.leaves
            parts = iter(torch.autograd.grad(loss, list(itertools.chain(*leaves.values()))))
            self.state.update(learning, {name: [next(parts) for _ in layers] for name, layers in leaves.items()})

    def _inputs(self, shape: PassShape, begin_S: Tensor, length_S: Tensor, bounds: Tensor) -> Tensor:
        """Tokens ``[T]`` of all rows, 0 in padding."""
        row_T = torch.arange(shape.rows, device=self.device, dtype=torch.int32)
        segment_T = torch.searchsorted(bounds[1:], row_T, right=True)
        known_T = segment_T.clamp(max=shape.documents - 1)
        offset_T = row_T - bounds[known_T]
        place_T = (begin_S[known_T] + offset_T).clamp_(max=self.tokens.shape[0] - 1)
        inside_T = (segment_T < shape.documents) & (offset_T < length_S[known_T])
        return torch.where(inside_T, self.tokens[place_T].long(), 0)

    def _forward(
        self, inputs_T: Tensor, targets: Tensor, bounds: Tensor, chunk_rows: Tensor | None, rows: RowSlots,
        heads: RowSlots, chunks: Chunks, learning: Learning | None, keeps: bool,
    ) -> Tensor:  # fmt: skip
        """Nats of the chunks' targets, ``[S c]``."""
        adapters = None
        if self.state is not None:
            adapters = DocumentAdapters(
                self.groups, self.state.leaves, rows, heads, scale=self.config.adapters.scale, backend=self.backend,
                states=self.state.layers, learning=learning if self.backend == "triton" else None,
            )  # fmt: skip
        context = self._context(chunks, keeps) if self.plan.cached else None
        n_ScD = self.model.features(inputs_T, bounds, adapters=adapters, context=context, rows=chunk_rows)
        return self.model.nll(n_ScD, targets, adapters=adapters)

    def _context(self, chunks: Chunks, keeps: bool) -> Context:
        place = places(chunks, self.kept[0].keys.shape[1], self.chunk_rows)
        row_C = torch.arange(self.chunk_rows, device=self.device)
        # What pads a chunk must not push what it is to see out of the ring.
        within_T = (row_C < chunks.chunk).repeat(chunks.slots.shape[0])
        place = torch.where(within_T, place, self.config.slots * self.kept[0].keys.shape[1])

        def attend(virtual: int) -> Attend:
            def run(q: Tensor, k: Tensor, v: Tensor, masked: bool) -> Tensor:
                kept = self.kept[virtual]
                if keeps:
                    keep_(kept, k, v, place)
                return chunk_attention(q, k, v, kept, chunks, backend=self.backend)

            return run

        return Context((chunks.starts.long()[:, None] + row_C).flatten(), attend)

    def _add(self, nll_Sc: Tensor, within_Sc: Tensor, document_S: Tensor, place_Sc: Tensor) -> None:
        self.nats.index_add_(0, document_S, nll_Sc.double().sum(1))
        self.counts.index_add_(0, document_S, within_Sc.sum(1))
        if self.target_nats is not None:
            document_end = self.target_nats.shape[0] - 1
            kept = within_Sc & (document_S < self.counts.shape[0] - 1)[:, None]
            self.target_nats[torch.where(kept, place_Sc, document_end).flatten()] = nll_Sc.flatten()

    def _upload(self, values: npt.NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
