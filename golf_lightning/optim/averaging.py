"""How gradients become averages over ranks, and bank updates whole again: three ways, for three kinds of parameters.

Shapes: N matrices of a bank, P of them after padding, S = P / world size of them on one rank; R rows, C columns.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from golf_lightning.optim.exchange import SLOTS


def _gradient(parameter: nn.Parameter) -> Tensor:
    # A parameter outside the graph must still take part in the collectives of the other ranks.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class ShardedBank:
    """A bank of which each rank averages, remembers and orthogonalizes every matrix once.

    The gradient is reduce-scattered over the first dimension, padded with zero matrices to a multiple of the world
    size; the update of the rank's own shard is all-gathered. Both use ``dtype`` on the wire and share their buffers.
    With one process the shard is the whole bank and nothing is copied.
    """

    def __init__(self, parameter: nn.Parameter, group: dist.ProcessGroup | None, dtype: torch.dtype) -> None:
        world_size = 1 if group is None else dist.get_world_size(group)
        rank = 0 if group is None else dist.get_rank(group)
        matrices, rows, columns = parameter.shape
        self.parameter = parameter
        self.shard_shape = (-(-matrices // world_size), rows, columns)
        self.first = min(matrices, rank * self.shard_shape[0])
        self.last = min(matrices, self.first + self.shard_shape[0])
        self._group = group
        self._work: dist.Work | None = None
        if group is not None:
            padded_shape = (world_size * self.shard_shape[0], rows, columns)
            self._whole_PRC = torch.zeros(padded_shape, dtype=dtype, device=parameter.device)
            self._shard_SRC = torch.empty(self.shard_shape, dtype=dtype, device=parameter.device)

    def launch_gradient(self) -> None:
        """Start averaging ``parameter.grad`` over ranks."""
        if self._group is not None:
            self._whole_PRC[: len(self.parameter)].copy_(_gradient(self.parameter))
            self._work = _collective("reduce_scatter")(
                self._shard_SRC, self._whole_PRC, op=dist.ReduceOp.AVG, group=self._group, async_op=True
            )

    def gradient(self) -> Tensor:
        """The averaged gradient of this rank's matrices, ``[S, R, C]`` float32, free to be changed in place."""
        if self._group is None:
            return _gradient(self.parameter)
        _wait(self._work)
        return self._shard_SRC.float()

    def launch_update(self, update_SRC: Tensor) -> None:
        """Start gathering the shards' updates, ``[S, R, C]`` of any floating dtype."""
        if self._group is None:
            self._whole_PRC = update_SRC
        else:
            self._shard_SRC.copy_(update_SRC)
            self._work = _collective("all_gather")(self._whole_PRC, self._shard_SRC, group=self._group, async_op=True)

    def update(self) -> Tensor:
        """The update of the whole bank, ``[N, R, C]``, the same on every rank; valid until the next step."""
        if self._group is None:
            update_NRC = self._whole_PRC
            del self._whole_PRC
            return update_NRC
        _wait(self._work)
        return self._whole_PRC[: len(self.parameter)]

    def cut(self, whole_NRC: Tensor) -> Tensor:
        """This rank's shard of a full-size state tensor: ``[S, R, C]`` float32 on the bank's device, padded with 0."""
        shard_SRC = torch.zeros(self.shard_shape, dtype=torch.float32, device=self.parameter.device)
        shard_SRC[: self.last - self.first].copy_(whole_NRC[self.first : self.last])
        return shard_SRC

    def gather(self, shard_SRC: Tensor, to: int) -> Tensor | None:
        """Collect a sharded state tensor in the CPU memory of rank ``to``, ``[N, R, C]``; ``None`` on other ranks.

        Every rank calls it. Only rank ``to`` holds more than its shard, and on its device one bank at a time.
        """
        assert self._group is not None
        here = dist.get_rank(self._group) == to
        shards = [torch.empty_like(shard_SRC) for _ in range(dist.get_world_size(self._group))] if here else None
        dist.gather(shard_SRC, shards, dst=dist.get_global_rank(self._group, to), group=self._group)
        return torch.cat([shard.cpu() for shard in shards])[: len(self.parameter)].clone() if shards else None

    def wire_bytes(self) -> int:
        """Bytes that each rank sends in one reduce-scatter or one all-gather (ring)."""
        if self._group is None:
            return 0
        return self._whole_PRC.nbytes - self._shard_SRC.nbytes


class LargeGradient:
    """A gradient that every rank needs whole, in an all-reduce of its own and in ``dtype`` (the embedding's)."""

    def __init__(self, parameter: nn.Parameter, group: dist.ProcessGroup | None, dtype: torch.dtype) -> None:
        self.parameter = parameter
        self._group = group
        self._work: dist.Work | None = None
        if group is not None:
            self._buffer = torch.empty(parameter.shape, dtype=dtype, device=parameter.device)

    def launch_gradient(self) -> None:
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
