"""Facade of attention from a chunk of a document to itself and to the keys and values kept of what came before it.

Each slot keeps a ring: the key of position p lies at ``p mod ring``. Gradients reach the chunk's own queries, keys and
values; what is kept is constant. Every program of the fused path owns its outputs, so the same inputs give the same
bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend

# S documents of the pass, C rows of a chunk with padding, T = S C, H query heads, G key/value heads, h = H / G, K head
# dimension, P slots, N places of the ring


@dataclass(frozen=True, slots=True)
class Kept:
    """Keys and values kept of each slot's document, in one layer.

    Attributes:
        keys: ``[P, N, G, K]``, rotated.
        values: ``[P, N, G, K]``.
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where the chunks of a pass stand in their documents.

    Attributes:
        slots: ``[S]`` int32, slot of each.
        starts: ``[S]`` int32, position of each chunk's first row in its document.
        chunk: positions of a full chunk, without padding.
        window: most positions that a chunk's last row sees, itself included; at most N.
    """

    slots: Tensor
    starts: Tensor
    chunk: int
    window: int


def chunk_attention(
    q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, kept: Kept, chunks: Chunks, *, backend: KernelBackend = "reference"
) -> Tensor:
    """Causal attention ``[T, H, K]``, scale ``1 / sqrt(K)``, of S chunks of C rows each.

    A row sees the chunk's rows up to itself and the kept positions from ``start + chunk - window`` on.

    Args:
        q_THK: queries; every group of ``H / G`` heads shares one key/value head.
        k_TGK: the chunks' own keys.
        v_TGK: their values.
        kept: what is kept; constant.
        chunks: where the chunks stand.
        backend: ``reference`` or ``triton``.
    """
    if backend == "triton":
        out: Tensor = _ChunkAttention.apply(
            q_THK, k_TGK, v_TGK, kept.keys, kept.values, chunks.slots, chunks.starts, chunks.chunk, chunks.window
        )
        return out
    return _reference(q_THK, k_TGK, v_TGK, kept, chunks)


def places(chunks: Chunks, ring: int, rows: int) -> Tensor:
    """Where the chunks' rows belong in the rings laid end to end, ``[T]`` int64."""
    position_SC = chunks.starts.long()[:, None] + torch.arange(rows, device=chunks.starts.device)
    return (chunks.slots.long()[:, None] * ring + position_SC % ring).flatten()


def keep_(kept: Kept, k_TGK: Tensor, v_TGK: Tensor, places_T: Tensor) -> None:
    """Put the chunks' keys and values into their rings; call it once they are scored, or before: no row sees them."""
    for ring, new in ((kept.keys, k_TGK), (kept.values, v_TGK)):
        ring.flatten(0, 1).index_copy_(0, places_T, new.detach())


def _reference(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, kept: Kept, chunks: Chunks) -> Tensor:
    count, ring = chunks.slots.shape[0], kept.keys.shape[1]
    rows, groups = q_THK.shape[0] // count, q_THK.shape[1] // k_TGK.shape[1]
    start_S1 = chunks.starts.long()[:, None]
    behind_SN = (start_S1 - 1 - torch.arange(ring, device=start_S1.device)) % ring + 1
    seen_SN = start_S1 - behind_SN >= (start_S1 + chunks.chunk - chunks.window).clamp(min=0)
    row_C = torch.arange(rows, device=start_S1.device)
    seen = torch.cat([seen_SN[:, None].expand(-1, rows, -1), (row_C[:, None] >= row_C).expand(count, -1, -1)], dim=2)
    q_SCHK = q_THK.unflatten(0, (count, rows))
    k, v = (
        torch.cat([old.index_select(0, chunks.slots), new.unflatten(0, (count, rows))], dim=1)
        .repeat_interleave(groups, dim=2)
        for old, new in ((kept.keys, k_TGK), (kept.values, v_TGK))
    )  # fmt: skip
    scores = torch.einsum("schk,snhk->shcn", q_SCHK, k) * q_THK.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return torch.einsum("shcn,snhk->schk", weights, v).flatten(0, 1)


@torch.library.custom_op("golf::chunk_attention", mutates_args=())
def chunk_attention_op(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor, starts: Tensor, chunk: int,
    window: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result and the logarithm of each row's sum of weights, ``[T, H]`` float32."""
    from golf_lightning.kernels.triton_chunk_attention import launch

    return launch(q.contiguous(), k.contiguous(), v.contiguous(), keys, values, slots, starts, chunk, window)


@chunk_attention_op.register_fake
def _shapes(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor, starts: Tensor, chunk: int,
    window: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("golf::chunk_attention_backward", mutates_args=())
def chunk_attention_backward_op(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, keys: Tensor, values: Tensor,
    slots: Tensor, starts: Tensor, chunk: int, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the chunks' queries, keys and values."""
    from golf_lightning.kernels.triton_chunk_attention import launch_backward

    dout, q, k, v = (x.contiguous() for x in (dout, q, k, v))
    return launch_backward(dout, q, k, v, out, lse, keys, values, slots, starts, chunk, window)


@chunk_attention_backward_op.register_fake
def _backward_shapes(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, keys: Tensor, values: Tensor,
    slots: Tensor, starts: Tensor, chunk: int, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


class _ChunkAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor, starts: Tensor,
        chunk: int, window: int,
    ) -> Tensor:  # fmt: skip
        out, lse = torch.ops.golf.chunk_attention(q, k, v, keys, values, slots, starts, chunk, window)
        # The rings change between passes, never between a pass and its gradients, but for places that no row sees.
        ctx.rings = keys, values
        ctx.save_for_backward(q, k, v, out, lse, slots, starts)
        ctx.chunk, ctx.window = chunk, window
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, slots, starts = ctx.saved_tensors
        dq, dk, dv = torch.ops.golf.chunk_attention_backward(
            dout, q, k, v, out, lse, *ctx.rings, slots, starts, ctx.chunk, ctx.window
        )
        return dq, dk, dv, *(None,) * 6
