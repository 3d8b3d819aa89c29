"""The block: attention and MLP of one layer, and the ways their outputs join the residual stream.

There is exactly one copy of this mathematics. Training, validation, calibration and test-time training all run it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend
from golf_lightning.kernels.heads import NORM_EPS, prepare_heads, serves_heads
from golf_lightning.kernels.heads import exclude_self as exclude_self_fused
from golf_lightning.kernels.mixing import Blend, Stream, Wanted, mix
from golf_lightning.kernels.mlp import mlp, product
from golf_lightning.kernels.residual import add_branches
from golf_lightning.kernels.whole_heads import WholeHeads
from golf_lightning.model.injection import Attend, LayerAdapters, Recorder
from golf_lightning.model.rotary import rotate

# T tokens, D width, H query heads, G key/value heads, C = G K, K head dimension, R rotated half


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One physical layer's row of every bank and its vectors, in the compute dtype.

    ``qkv`` holds the rows of Q, then K, then V. The rows of ``o`` and ``down`` are already multiplied by the layer's
    ``attn_scale`` and ``mlp_scale``: the gradient of a scale then costs a sum over a matrix instead of over all tokens.
    """

    index: int
    qkv: Tensor
    o: Tensor
    up: Tensor
    down: Tensor
    mix: Tensor
    attn_scale: Tensor
    mlp_scale: Tensor
    q_gain: Tensor


@dataclass(frozen=True, slots=True)
class Pass:
    """What all blocks of one forward pass share.

    ``frozen``: no weight asks for a gradient, so that sums and norms may run fused. ``rows``, where given, are the only
    rows whose results are wanted: set for the last layer, which past its attention then runs on them alone. ``heads``
    is everything between the joint projection and the output's in one, where there is such an operation. ``cute``: the
    MLP's fused products are those of quack-kernels.
    """

    x0_TD: Tensor
    cos_TR: Tensor
    sin_TR: Tensor
    cu_seqlens: Tensor
    attend: Attend
    head_dim: int
    xsa: bool
    recorder: Recorder | None
    kernels: KernelBackend
    frozen: bool
    rows: Tensor | None = None
    heads: WholeHeads | None = None
    cute: bool = False

    def wanted(self, x_TD: Tensor) -> Tensor:
        """The rows whose results are wanted."""
        return x_TD if self.rows is None else x_TD.index_select(0, self.rows)

    def mix(self, *wanted: Wanted, again_TD: Tensor | None = None) -> list[Tensor]:
        """See :func:`~golf_lightning.kernels.mixing.mix`."""
        return mix(wanted, again_TD=again_TD, backend=self.kernels, frozen=self.frozen)


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square normalization over the last dimension, without parameters."""
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


Read = Sequence[Tensor]
"""A branch's normalized input ``[T, D]``, once for each of its readers, whose gradients then come back one by one."""

ATTENTION_READERS, MLP_READERS = 3, 2
"""The product and the adapters that read the input of attention, and of the MLP."""


def entry(x: Stream, layer: LayerWeights, run: Pass) -> Blend:
    """The residual stream re-anchored at the embedding."""
    return Blend(((layer.mix[0], x), (layer.mix[1], run.x0_TD)))


def shrink(layer: LayerWeights) -> float:
    """What a layer's norms are multiplied by: one over the root of its number."""
    return float((layer.index + 1) ** -0.5)


def attention_branch(read: Read, layer: LayerWeights, run: Pass, adapters: LayerAdapters) -> Tensor:
    """The scaled attention output ``[T, D]`` for the normalized input, which has three readers."""
    y_TD = attention_heads(read, layer, run, adapters)
    out_TD = product(y_TD, layer.o, backend=run.kernels)
    return out_TD if adapters.attn is None else adapters.attn(out_TD, run.wanted(read[2]), layer.attn_scale)


def attention_heads(read: Read, layer: LayerWeights, run: Pass, adapters: LayerAdapters) -> Tensor:
    """What the heads make of the normalized input, ``[T, D]``, the wanted rows."""
    if run.recorder is not None:
        run.recorder(f"qkv.{layer.index}", read[0])
    qkv_TC = F.linear(read[0], layer.qkv)
    if adapters.qkv is not None:
        qkv_TC = adapters.qkv(qkv_TC, read[1], None)
    if run.heads is not None:
        y_THK = run.heads(qkv_TC, layer.q_gain)
    elif serves_heads(run.kernels, run.head_dim, run.cos_TR.shape[1]):
        q, k, v, v_again = prepare_heads(qkv_TC, run.cos_TR, run.sin_TR, layer.q_gain, run.cu_seqlens, run.head_dim)
        y_THK = exclude_self_fused(run.attend(q, k, v, False), v_again, run.cu_seqlens, exclude=run.xsa)
    else:
        y_THK = _attention(qkv_TC, layer, run)
    y_TD = run.wanted(y_THK.flatten(-2))
    if run.recorder is not None:
        run.recorder(f"o.{layer.index}", y_TD)
    return y_TD


def _attention(qkv_TC: Tensor, layer: LayerWeights, run: Pass) -> Tensor:
    width = layer.q_gain.shape[0] * run.head_dim
    kv_width = (qkv_TC.shape[-1] - width) // 2
    parts = qkv_TC.split([width, kv_width, kv_width], dim=-1)
    q_THK, k_TGK, v_TGK = (part.unflatten(-1, (-1, run.head_dim)) for part in parts)
    q_THK = rotate(rms_norm(q_THK), run.cos_TR, run.sin_TR) * layer.q_gain[:, None]
    k_TGK = rotate(rms_norm(k_TGK), run.cos_TR, run.sin_TR)
    y_THK = run.attend(q_THK, k_TGK, v_TGK, True)
    return exclude_self(y_THK, v_TGK) if run.xsa else y_THK


def exclude_self(y_THK: Tensor, v_TGK: Tensor) -> Tensor:
    """XSA: take from each head's output its component along the token's own unit value vector."""
    groups = v_TGK.shape[1]
    unit_TG1K = F.normalize(v_TGK, dim=-1)[:, :, None]
    y_TGhK = y_THK.unflatten(1, (groups, -1))
    along_TGh1 = (y_TGhK * unit_TG1K).sum(-1, keepdim=True)
    return (y_TGhK - along_TGh1 * unit_TG1K).flatten(1, 2)


def mlp_branch(read: Read, layer: LayerWeights, run: Pass, adapters: LayerAdapters) -> Tensor:
    """The scaled MLP output ``[T, D]`` for the normalized input, which has two readers."""
    observe = None
    if (recorder := run.recorder) is not None:
        recorder(f"up.{layer.index}", read[0])

        def observe(hidden: Tensor) -> None:
            recorder(f"down.{layer.index}", hidden)

    out_TD = mlp(read[0], layer.up, layer.down, observe=observe, backend=run.kernels, cute=run.cute)
    return out_TD if adapters.mlp is None else adapters.mlp(out_TD, read[1], layer.mlp_scale)


def serial_block(
    x: Stream, layer: LayerWeights, run: Pass, adapters: LayerAdapters, skip_TD: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Attention, then the MLP on its result; and ``skip``, which is ``x`` where it is a skip, for its other use."""
    scale = shrink(layer)
    entered = Wanted(entry(x, layer, run), True, scale, ATTENTION_READERS)
    u_TD, *read = run.mix(entered, again_TD=skip_TD)
    again_TD = None if skip_TD is None else read[ATTENTION_READERS]
    if adapters.attn is None and adapters.mlp is None and run.recorder is None:
        y_TD = attention_heads(read, layer, run, adapters)
        x_TD = add_branches(
            run.wanted(u_TD), y_TD, layer.o, scale, layer.up, layer.down, backend=run.kernels, cute=run.cute
        )
        return x_TD, again_TD
    attended = Blend(((1.0, run.wanted(u_TD)), (1.0, attention_branch(read, layer, run, adapters))))
    x_TD, *read = run.mix(Wanted(attended, True, scale, MLP_READERS))
    return x_TD + mlp_branch(read, layer, run, adapters), again_TD


@dataclass(frozen=True, slots=True)
class LaneWeights:
    """Scalars that join one layer's branches to the crossed lanes, each ``[2]``: to lane 0 and to lane 1."""

    residual: Tensor
    attn: Tensor
    mlp: Tensor


def parallel_block(
    lanes: tuple[Stream, Stream], layer: LayerWeights, run: Pass, adapters: LayerAdapters, lane: LaneWeights | None
) -> tuple[Blend, Blend]:
    """Attention reads lane 0, the MLP reads lane 1, at the same time.

    With ``lane`` the outputs are routed to both lanes (record #1530 v2); without, each stays on its own (PR #1536).
    """
    scale = shrink(layer)
    # Isolated, lane 0 goes on from the entry; crossed, from what it was before.
    entered = Wanted(entry(lanes[0], layer, run), lane is None, scale, ATTENTION_READERS)
    first = [entered] if lane is None else [Wanted(lanes[0], True), entered]
    lane0_TD, *read, lane1_TD, m0_TD, m1_TD = run.mix(*first, Wanted(lanes[1], True, scale, MLP_READERS))
    lane0_TD, lane1_TD = run.wanted(lane0_TD), run.wanted(lane1_TD)
    attn_TD = attention_branch(read, layer, run, adapters)
    mlp_TD = mlp_branch((run.wanted(m0_TD), run.wanted(m1_TD)), layer, run, adapters)
    if lane is None:
        return Blend(((1.0, lane0_TD), (1.0, attn_TD))), Blend(((1.0, lane1_TD), (1.0, mlp_TD)))
    lane0, lane1 = (
        Blend(((residual, x_TD), (attn, attn_TD), (mlp, mlp_TD)))
        for x_TD, residual, attn, mlp in zip((lane0_TD, lane1_TD), lane.residual, lane.attn, lane.mlp, strict=True)
    )
    return lane0, lane1
