"""Facade of low-rank products in which every run of rows has matrices of its own: adapters of many documents at once.

``out = base + scale * (alpha * x A^T) B^T``, where A and B belong to the slot of the row's document (Hu et al. 2021,
arXiv:2106.09685). Rows come in tiles of one slot each, so documents of different lengths lie side by side without
padding to the longest, and a slot's matrices are read where they are kept. Several adapters that read the same input
share a call: their A stand above each other and each writes columns of its own.

Where a step of AdamW is given, the backward pass takes it: a gradient is used up in the program that computes it, and
never written.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend
from golf_lightning.kernels.slot_adamw import Learning, SlotTensor, adamw_

# T rows, D inputs, O outputs, P slots, S segments, I tiles, t rows of a tile, r rank, R = r times adapters in the call


@dataclass(frozen=True, slots=True)
class Spans:
    """Runs of rows that one program takes.

    Attributes:
        rows: most rows of a span.
        table: ``[J, 3]`` int32, of each span its first row, its segment's last row but one, and its slot; spans that
            begin where their segment ends are empty.
    """

    rows: int
    table: Tensor


class RowSlots:
    """Which slot each row belongs to.

    Args:
        bounds: ``[S + 1]`` int32, first row of each segment, multiples of ``tile``; a segment has one slot. Rows past
            the last segment belong to no document.
        slots: ``[S]`` int32, slot of each segment; the last slot stands for no document, and its rows get no adapter.
        learners: ``[S]`` int32, slot of each segment that wants gradients, and the last slot for the others; no slot
            but the last occurs twice.
        total: T, a multiple of ``tile``.
        tile: rows that have one slot; the reference goes by tiles.
        span: most rows that a program of the fused path takes.
        last: the last slot.
    """

    def __init__(
        self, bounds: Tensor, slots: Tensor, learners: Tensor, *, total: int, tile: int, span: int, last: int
    ) -> None:
        self.bounds, self.learners, self.tile, self.span = bounds, learners, tile, span
        self._total = total
        self._ends, self._slots = F.pad(bounds[1:], (0, 1), value=total), F.pad(slots, (0, 1), value=last)

    @functools.cached_property
    def segments(self) -> Tensor:
        """Segment of each tile, ``[I]``; S for those past the last."""
        first = torch.arange(0, self._total, self.tile, device=self.bounds.device, dtype=self.bounds.dtype)
        return torch.searchsorted(self.bounds[1:], first, right=True)

    @functools.cached_property
    def tiles(self) -> Tensor:
        """Slot of each tile, ``[I]`` int32."""
        return self._slots[self.segments]

    @functools.cached_property
    def spans(self) -> Tensor:
        """Of each span its first row, the end of its segment, and its slot, ``[J, 3]`` int32; a span that begins where
        its segment ends is empty."""
        count_S = (self._ends - self.bounds + self.span - 1) // self.span
        before_S = count_S.cumsum(0) - count_S
        most = self._total // self.span + (len(self._slots) if self.tile % self.span else 0)
        span_J = torch.arange(most, device=self.bounds.device)
        of_J = torch.searchsorted(before_S, span_J, right=True) - 1
        end_J = self._ends[of_J]
        first_J = torch.minimum(self.bounds[of_J] + (span_J - before_S[of_J]) * self.span, end_J)
        return torch.stack([first_J, end_J, self._slots[of_J]], dim=1).int()


@dataclass(frozen=True, slots=True)
class Learner:
    """What an adapter's backward pass does to its own values.

    Attributes:
        a: A with its optimizer state.
        b: the same of B.
        learning: the step; its slots are the ``learners`` of the rows.
    """

    a: SlotTensor
    b: SlotTensor
    learning: Learning


def low_rank(
    base_TO: Tensor,
    x_TD: Tensor,
    a_PRD: Tensor,
    b_POr: Tensor,
    rows: RowSlots,
    columns: Sequence[tuple[int, int]],
    *,
    alpha: float = 1.0,
    scale_O: Tensor | None = None,
    learner: Learner | None = None,
    backend: KernelBackend = "reference",
) -> Tensor:
    """``[T, O]``: ``base`` with the adapters' outputs added.

    Args:
        base_TO: what is added to.
        x_TD: the adapters' common input.
        a_PRD: the A of every slot, one adapter's below the other's.
        b_POr: the B of every slot, likewise, for the columns that they write.
        rows: which slot each row belongs to.
        columns: first and last-but-one column that each adapter writes, ascending and disjoint.
        alpha: factor on the inner values.
        scale_O: factor on each column's addition.
        learner: a step that A and B take in the backward pass, which then gives no gradients of them; for ``triton``.
        backend: ``reference`` or ``triton``. The gradients of A and B that ``triton`` gives are written for the slots
            in ``rows.learners`` only; those of other slots hold anything.
    """
    flat = [bound for pair in columns for bound in pair]
    if backend == "triton":
        out: Tensor = _LowRank.apply(base_TO, x_TD, a_PRD, b_POr, rows, flat, alpha, scale_O, learner)
        return out
    assert learner is None, "the reference gives gradients"
    h_TR = down(x_TD, a_PRD, rows.tiles, alpha)
    return up(h_TR, base_TO, b_POr, scale_O, rows.tiles, flat)


def sites(flat: Sequence[int], rank: int) -> list[tuple[slice, slice, slice]]:
    """For each adapter of a call: its columns of the output, its inner values, its rows of B."""
    found, row = [], 0
    for i, (begin, end) in enumerate(zip(flat[::2], flat[1::2], strict=True)):
        found.append((slice(begin, end), slice(i * rank, (i + 1) * rank), slice(row, row + end - begin)))
        row += end - begin
    return found


def _of_tiles(w_P: Tensor, tiles_I: Tensor) -> Tensor:
    """Each tile's matrix; zero for the last slot."""
    used = (tiles_I < w_P.shape[0] - 1).to(w_P.dtype)[:, None, None]
    return w_P.index_select(0, tiles_I) * used


def _per_tile(x_TC: Tensor, tiles_I: Tensor) -> Tensor:
    return x_TC.unflatten(0, (tiles_I.shape[0], -1))


def down(x_TD: Tensor, a_PRD: Tensor, tiles_I: Tensor, alpha: float) -> Tensor:
    """Inner values ``alpha * x A^T``, ``[T, R]``, in plain PyTorch."""
    w_IRD = _of_tiles(a_PRD, tiles_I)
    return torch.bmm(_per_tile(x_TD, tiles_I), w_IRD.transpose(1, 2)).flatten(0, 1) * alpha


def up(
    h_TR: Tensor, base_TO: Tensor, b_POr: Tensor, scale_O: Tensor | None, tiles_I: Tensor, flat: Sequence[int]
) -> Tensor:
    """``base + scale * h B^T``, ``[T, O]``, in plain PyTorch."""
    parts, done = [], 0
    for out, inner, rows in sites(flat, b_POr.shape[2]):
        w_IOr = _of_tiles(b_POr[:, rows], tiles_I)
        added = torch.bmm(_per_tile(h_TR[:, inner], tiles_I), w_IOr.transpose(1, 2)).flatten(0, 1)
        parts += [base_TO[:, done : out.start], base_TO[:, out] + (added if scale_O is None else added * scale_O[out])]
        done = out.stop
    return torch.cat([*parts, base_TO[:, done:]], dim=1)


def backward(
    dout_TO: Tensor, x_TD: Tensor, h_TR: Tensor, a_PRD: Tensor, b_POr: Tensor, scale_O: Tensor | None, rows: RowSlots,
    flat: Sequence[int], alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, A and B in plain PyTorch; those of A and B are 0 for slots that do not learn."""
    tiles = rows.tiles
    scaled = dout_TO if scale_O is None else dout_TO * scale_O
    g, db = torch.empty_like(h_TR), torch.zeros_like(b_POr)
    learns = F.pad(rows.learners, (0, 1), value=a_PRD.shape[0] - 1)[rows.segments].long()
    for out, inner, of_b in sites(flat, b_POr.shape[2]):
        w = _of_tiles(b_POr[:, of_b], tiles)
        part = _per_tile(scaled[:, out], tiles)
        g[:, inner] = torch.bmm(part, w).flatten(0, 1) * alpha
        db[:, of_b].index_add_(0, learns, torch.bmm(part.transpose(1, 2), _per_tile(h_TR[:, inner], tiles)))
    g_tiles = _per_tile(g, tiles)
    da = torch.zeros_like(a_PRD).index_add_(0, learns, torch.bmm(g_tiles.transpose(1, 2), _per_tile(x_TD, tiles)))
    return torch.bmm(g_tiles, _of_tiles(a_PRD, tiles)).flatten(0, 1), da, db


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, a: Tensor, b: Tensor, rows: RowSlots, flat: list[int], alpha: float,
        scale: Tensor | None, learner: Learner | None,
    ) -> Tensor:  # fmt: skip
        if x.is_cuda:
            from golf_lightning.kernels.triton_low_rank import launch_forward

            out, h = launch_forward(base.contiguous(), x.contiguous(), a, b, scale, rows, flat, alpha)
        else:
            h = down(x, a, rows.tiles, alpha)
            out = up(h, base, b, scale, rows.tiles, flat)
        ctx.save_for_backward(x, h, a, b, scale)
        ctx.rows, ctx.flat, ctx.alpha, ctx.learner = rows, flat, alpha, learner
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        given: list[Any] = [dout.contiguous(), x.contiguous(), *saved, ctx.rows, ctx.flat, ctx.alpha]
        learner: Learner | None = ctx.learner
        if dout.is_cuda:
            from golf_lightning.kernels.triton_low_rank import launch_backward

            dx, da, db = launch_backward(*given, learner=learner, want_dx=ctx.needs_input_grad[1])
        else:
            dx, da, db = backward(*given)
            if learner is not None:
                adamw_(learner.a, da, learner.learning)
                adamw_(learner.b, db, learner.learning)
                da = db = None
        return dout, dx, da, db, *(None,) * 5
