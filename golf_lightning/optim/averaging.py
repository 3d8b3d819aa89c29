"""How gradients become averages over ranks, and bank updates whole again: three ways, for three kinds of parameters.

Shapes: N matrices of a bank, P of a pool after padding, S of them on one rank; R rows, C columns, V = R C values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from golf_lightning.optim.exchange import SLOTS


def _gradient(parameter: nn.Parameter) -> Tensor:
    # A parameter outside the graph must still take part in the collectives of the other ranks.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class BankPool:
    """Banks whose matrices have equally many values, dealt to the ranks as one row of matrices.

    Each rank averages, remembers and orthogonalizes every matrix once. The gradients are reduce-scattered over the
    first dimension, padded with zero matrices to a multiple of the world size; the updates are all-gathered. Both use
    ``dtype`` on the wire and share their buffers. A matrix travels as its values in a row, so up and down projections
    share a pool and its padding: on 8 ranks 22 matrices pad to 24, where 11 and 11 would pad to 16 and 16.
    With one process each bank is its own shard and nothing is copied.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None, dtype: torch.dtype) -> None:
        values = math.prod(parameters[0].shape[1:])
        assert all(math.prod(parameter.shape[1:]) == values for parameter in parameters)
        self.parameters = list(parameters)
        self.numel = sum(parameter.numel() for parameter in parameters)
        self._group = group
        self._work: dist.Work | None = None
        self._alone: list[Tensor] = []
        if group is None:
            return
        world_size, rank = dist.get_world_size(group), dist.get_rank(group)
        rows = -(-sum(len(parameter) for parameter in parameters) // world_size)
        self._whole_PV = torch.zeros((world_size * rows, values), dtype=dtype, device=parameters[0].device)
        self._shard_SV = torch.empty((rows, values), dtype=dtype, device=parameters[0].device)
        self._pieces: dict[nn.Parameter, _Piece] = {}
        offset = 0
        for parameter in parameters:
            count = len(parameter)
            first, last = (min(max(place - offset, 0), count) for place in (rank * rows, (rank + 1) * rows))
            start = max(offset - rank * rows, 0)
            self._pieces[parameter] = _Piece(offset, first, last, start)
            offset += count

    def launch_gradients(self) -> None:
        """Start averaging the gradients over ranks."""
        if self._group is not None:
            for parameter in self.parameters:
                self._of(parameter).copy_(_gradient(parameter))
            self._work = _collective("reduce_scatter")(
                self._shard_SV, self._whole_PV, op=dist.ReduceOp.AVG, group=self._group, async_op=True
            )

    def gradients(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each bank with the averaged gradients of this rank's matrices, ``[S, R, C]`` float32; S may be 0.

        They are free to be changed in place.
        """
        if self._group is None:
            return [(parameter, _gradient(parameter)) for parameter in self.parameters]
        _wait(self._work)
        return self._cut_up(self._shard_SV.float())

    def launch_updates(self, updates: Sequence[Tensor]) -> None:
        """Start gathering the updates of all shards, given in the order of :meth:`gradients`, any floating dtype."""
        if self._group is None:
            self._alone = list(updates)
            return
        for (_, shard_SRC), update_SRC in zip(self._cut_up(self._shard_SV), updates, strict=True):
            shard_SRC.copy_(update_SRC)
        self._work = _collective("all_gather")(self._whole_PV, self._shard_SV, group=self._group, async_op=True)

    def updates(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each bank with its whole update, ``[N, R, C]``, the same on every rank; valid until the next step."""
        if self._group is None:
            alone, self._alone = self._alone, []
            return list(zip(self.parameters, alone, strict=True))
        _wait(self._work)
        return [(parameter, self._of(parameter)) for parameter in self.parameters]

    def cut(self, parameter: nn.Parameter, whole_NRC: Tensor) -> Tensor:
        """This rank's part of a full-size state tensor: a copy, ``[S, R, C]`` float32 on the bank's device."""
        if self._group is not None:
            piece = self._pieces[parameter]
            whole_NRC = whole_NRC[piece.first : piece.last]
        return whole_NRC.to(device=parameter.device, dtype=torch.float32, copy=True)

    def gather(self, shards: Mapping[nn.Parameter, Tensor], to: int) -> dict[nn.Parameter, Tensor]:
        """Collect sharded state tensors in the CPU memory of rank ``to``, ``[N, R, C]`` each; nothing on other ranks.

        Every rank calls it with what it has. Rank ``to`` holds the parts of one pool on its device for a moment, the
        others no more than their own.
        """
        assert self._group is not None
        shard_SV = torch.zeros_like(self._shard_SV, dtype=torch.float32)
        for parameter, view_SRC in self._cut_up(shard_SV):
            view_SRC.copy_(shards[parameter])
        here = dist.get_rank(self._group) == to
        parts = [torch.empty_like(shard_SV) for _ in range(dist.get_world_size(self._group))] if here else None
        dist.gather(shard_SV, parts, dst=dist.get_global_rank(self._group, to), group=self._group)
        if parts is None:
            return {}
        rows_V = [row_V for part_SV in parts for row_V in part_SV]
        whole = {parameter: torch.empty(parameter.shape, dtype=torch.float32) for parameter in self.parameters}
        for parameter, full_NRC in whole.items():
            for index, matrix_RC in enumerate(full_NRC, start=self._pieces[parameter].offset):
                matrix_RC.copy_(rows_V[index].view(matrix_RC.shape))
        return whole

    def wire_bytes(self) -> int:
        """Bytes that each rank sends in one reduce-scatter or one all-gather (ring)."""
        if self._group is None:
            return 0
        return self._whole_PV.nbytes - self._shard_SV.nbytes

    def _of(self, parameter: nn.Parameter) -> Tensor:
        offset = self._pieces[parameter].offset
        return self._whole_PV[offset : offset + len(parameter)].view(parameter.shape)

    def _cut_up(self, shard_SV: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        return [
            (parameter, shard_SV[piece.start : piece.start + piece.last - piece.first].view(-1, *parameter.shape[1:]))
            for parameter, piece in self._pieces.items()
        ]


class _Piece(NamedTuple):
    """Where a bank lies in its pool: its matrices begin at row ``offset``; ``first`` to ``last`` of them are this
    rank's, and begin at row ``start`` of its shard."""

    offset: int
    first: int
    last: int
    start: int


class LargeGradient:
    """A gradient that every rank needs whole, in an all-reduce of its own and in ``dtype`` (the embedding's)."""

    def __init__(self, parameter: nn.Parameter, group: dist.ProcessGroup | None, dtype: torch.dtype) -> None:
        self.parameter = parameter
        self.numel = parameter.numel()
        self._group = group
        self._work: dist.Work | None = None
        if group is not None:
            self._buffer = torch.empty(parameter.shape, dtype=dtype, device=parameter.device)

    def launch_gradients(self) -> None:
        """Start averaging ``parameter.grad`` over ranks."""
        if self._group is not None:
            self._buffer.copy_(_gradient(self.parameter))
            self._work = dist.all_reduce(self._buffer, op=dist.ReduceOp.AVG, group=self._group, async_op=True)

    def gradient(self) -> Tensor:
        """The averaged gradient, float32, free to be changed in place."""
        if self._group is None:
            return _gradient(self.parameter)
        _wait(self._work)
        return self._buffer.float()

    def wire_bytes(self) -> int:
        """Bytes that each rank sends in the all-reduce (ring)."""
        return 0 if self._group is None else _all_reduce_bytes(self._buffer, self._group)


class PackedGradients:
    """All small gradients in one float32 all-reduce, with one sum (of squared norms) and the exchange's slots behind.

    Attributes:
        square: 0-d float32 view of the buffer: set to this rank's part before :meth:`reduce`, the sum over ranks after.
        slots: ``[SLOTS]`` float32 view, likewise.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None, device: torch.device
    ) -> None:
        self.parameters = list(parameters)
        self._group = group
        # One process needs no buffer for gradients, only for what rides along.
        sizes = [] if group is None else [parameter.numel() for parameter in self.parameters]
        self._buffer = torch.zeros(sum(sizes) + 1 + SLOTS, dtype=torch.float32, device=device)
        *flat, square, self.slots = self._buffer.split([*sizes, 1, SLOTS])
        self.square = square[0]
        self._views = [view.view(p.shape) for view, p in zip(flat, self.parameters, strict=False)]

    def reduce(self) -> list[Tensor]:
        """Average the gradients over ranks, sum the rest, and return the gradients, free to be changed in place."""
        gradients = [_gradient(parameter) for parameter in self.parameters]
        if self._group is None:
            return gradients
        if gradients:
            torch._foreach_copy_(self._views, gradients)
            torch._foreach_div_(self._views, dist.get_world_size(self._group))
        _wait(dist.all_reduce(self._buffer, group=self._group, async_op=True))
        return self._views

    def wire_bytes(self) -> int:
        """Bytes that each rank sends in the all-reduce (ring)."""
        return 0 if self._group is None else _all_reduce_bytes(self._buffer, self._group)


def _collective(kind: str) -> Callable[..., dist.Work | None]:
    # torch 2.13 renamed both and warns about the names that 2.11 knows.
    old = {"reduce_scatter": "reduce_scatter_tensor", "all_gather": "all_gather_into_tensor"}[kind]
    return getattr(dist, f"{kind}_single", None) or getattr(dist, old)


def _wait(work: dist.Work | None) -> None:
    # On CUDA this makes the stream wait, not the host.
    assert work is not None
    work.wait()


def _all_reduce_bytes(buffer: Tensor, group: dist.ProcessGroup) -> int:
    world_size = dist.get_world_size(group)
    return 2 * (world_size - 1) * buffer.nbytes // world_size
