"""Weighted sums of streams with their norms as operators: plain PyTorch on a CPU, Triton kernels on a GPU."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf_lightning.kernels.heads import NORM_EPS

# T tokens, D width, N weights, P parts of a sum


def wide(x: Tensor) -> Tensor:
    """In at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Plan(NamedTuple):
    """Which sums to form. Values are the streams in order, then the sums.

    Attributes:
        uses: for each sum a mask of the values in it.
        written: for each sum whether its values are results.
        scales: for each sum the factor of its norm; 0 where that is no result.
    """

    uses: tuple[int, ...]
    written: tuple[bool, ...]
    scales: tuple[float, ...]


def _sums(streams: Sequence[Tensor], weights_ND: Tensor, uses: Sequence[int]) -> tuple[list[Tensor], list[list[int]]]:
    """All values in at least float32, and the values that each sum takes."""
    values, terms, row = [wide(x) for x in streams], [], 0
    for mask in uses:
        terms.append([value for value in range(len(values)) if mask >> value & 1])
        values.append(sum(weights_ND[row + n] * values[value] for n, value in enumerate(terms[-1])))  # type: ignore[arg-type]
        row += len(terms[-1])
    return values, terms


@torch.library.custom_op("golf::mix", mutates_args=())
def mix_op(
    streams: Sequence[Tensor], weights_ND: Tensor, uses: Sequence[int], written: Sequence[bool], scales: Sequence[float]
) -> list[Tensor]:
    """See ``mix`` of the facade and :class:`Plan`; the weights are those of the first sum, then of the next."""
    values, _ = _sums(streams, weights_ND, uses)
    results = []
    for total_TD, wanted, scale in zip(values[len(streams) :], written, scales, strict=True):
        results += [total_TD] * wanted
        if scale:
            results.append(total_TD * (scale * torch.rsqrt(total_TD.square().mean(-1, keepdim=True) + NORM_EPS)))
    # As an operator's results may not share memory with its inputs, nothing here is a view of them.
    return [x_TD.to(streams[0].dtype, copy=True) for x_TD in results]


@mix_op.register_fake
def _mix_shapes(
    streams: Sequence[Tensor], weights: Tensor, uses: Sequence[int], written: Sequence[bool], scales: Sequence[float]
) -> list[Tensor]:
    x = streams[0]
    return [x.new_empty(x.shape) for _ in range(sum(written) + sum(scale != 0 for scale in scales))]


@mix_op.register_kernel("cuda")
def _mix_on_gpu(
    streams: Sequence[Tensor], weights: Tensor, uses: Sequence[int], written: Sequence[bool], scales: Sequence[float]
) -> list[Tensor]:
    from golf_lightning.kernels.triton_mixing import launch_mix

    return launch_mix([x.contiguous() for x in streams], weights.contiguous(), uses, written, scales, NORM_EPS)


@torch.library.custom_op("golf::mix_backward", mutates_args=())
def mix_backward_op(
    grads: Sequence[Tensor],
    streams: Sequence[Tensor],
    weights_ND: Tensor,
    uses: Sequence[int],
    written: Sequence[bool],
    scales: Sequence[float],
    again: int,
) -> list[Tensor]:
    """Gradients of the streams, and last that of the weights in parts to be added up ``[P, N, D]``, at least float32.

    ``grads`` are those of the results, in their order, and last one to add to that of the stream ``again``, if not -1.
    """
    values, terms = _sums(streams, weights_ND, uses)
    slopes = [torch.zeros_like(value) for value in values]
    if again >= 0:
        slopes[again] += grads[-1]
        grads = grads[:-1]
    left, dweights, row = list(grads), [], weights_ND.shape[0]
    for j in reversed(range(len(uses))):
        total_TD, slope_TD = values[len(streams) + j], slopes[len(streams) + j]
        if scales[j]:
            inverse = torch.rsqrt(total_TD.square().mean(-1, keepdim=True) + NORM_EPS)
            unit_TD, g_TD = total_TD * inverse, wide(left.pop()) * scales[j]
            slope_TD += inverse * (g_TD - unit_TD * (g_TD * unit_TD).mean(-1, keepdim=True))
        if written[j]:
            slope_TD += left.pop()
        row -= len(terms[j])
        for n, value in enumerate(terms[j]):
            dweights.append((row + n, (slope_TD * values[value]).sum(0)))
            slopes[value] += weights_ND[row + n] * slope_TD
    rows = [dweight for _, dweight in sorted(dweights, key=lambda pair: pair[0])]
    return [x.to(streams[0].dtype) for x in slopes[: len(streams)]] + [torch.stack(rows)[None]]


@mix_backward_op.register_fake
def _mix_backward_shapes(
    grads: Sequence[Tensor],
    streams: Sequence[Tensor],
    weights: Tensor,
    uses: Sequence[int],
    written: Sequence[bool],
    scales: Sequence[float],
    again: int,
) -> list[Tensor]:
    x = streams[0]
    parts = _programs(weights, x) if x.device.type == "cuda" else 1
    wide = torch.promote_types(x.dtype, torch.float32)
    return [x.new_empty(x.shape) for x in streams] + [x.new_empty(parts, *weights.shape, dtype=wide)]


def _programs(weights_ND: Tensor, x_TD: Tensor) -> int:
    """Programs of the backward kernel: as many as 132 multiprocessors hold at once, by the weights in registers."""
    return min(132 * {5: 6}.get(weights_ND.shape[0], 8 if weights_ND.shape[0] < 5 else 4), x_TD.shape[0])


@mix_backward_op.register_kernel("cuda")
def _mix_backward_on_gpu(
    grads: Sequence[Tensor],
    streams: Sequence[Tensor],
    weights: Tensor,
    uses: Sequence[int],
    written: Sequence[bool],
    scales: Sequence[float],
    again: int,
) -> list[Tensor]:
    from golf_lightning.kernels.triton_mixing import launch_mix_backward

    grads, streams = ([x.contiguous() for x in xs] for xs in (grads, streams))
    programs = _programs(weights, streams[0])
    return launch_mix_backward(grads, streams, weights.contiguous(), uses, written, scales, again, NORM_EPS, programs)


def fused_mix(weights: Tensor, plan: Plan, again: int, streams: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The operators with their gradients; ``again`` is the stream to give once more as the last result, or -1."""
    # Without gradients torch 2.11 traces a function of one stream as if that were the context.
    compute = FusedMix.apply if torch.is_grad_enabled() else _mixed
    results: tuple[Tensor, ...] = compute(weights, plan, again, *streams)
    return results


def _mixed(weights: Tensor, plan: Plan, again: int, *streams: Tensor) -> tuple[Tensor, ...]:
    results = torch.ops.golf.mix(streams, weights, *plan)
    return (*results, streams[again].view_as(streams[again])) if again >= 0 else tuple(results)


class FusedMix(torch.autograd.Function):
    """See :func:`fused_mix`."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, plan: Plan, again: int, *streams: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weights, *streams)
        ctx.plan, ctx.again = plan, again
        return _mixed(weights, plan, again, *streams)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, *streams = ctx.saved_tensors
        *dstreams, parts = torch.ops.golf.mix_backward(grads, streams, weights, *ctx.plan, ctx.again)
        return parts.sum(0).to(weights.dtype) if ctx.needs_input_grad[0] else None, None, None, *dstreams


@torch.library.custom_op("golf::norm", mutates_args=())
def norm_op(x_TD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``scale`` times the norm, and the inverse of each row's root mean square ``[T]``, at least float32."""
    wide_TD = wide(x_TD)
    inverse_T = torch.rsqrt(wide_TD.square().mean(-1) + NORM_EPS)
    return (wide_TD * (scale * inverse_T[:, None])).to(x_TD.dtype), inverse_T


@norm_op.register_fake
def _norm_shapes(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))


@norm_op.register_kernel("cuda")
def _norm_on_gpu(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    from golf_lightning.kernels.triton_mixing import launch_norm

    return launch_norm(x.contiguous(), scale, NORM_EPS)


@torch.library.custom_op("golf::norm_backward", mutates_args=())
def norm_backward_op(dn_TD: Tensor, dx_TD: Tensor, n_TD: Tensor, inverse_T: Tensor, scale: float) -> Tensor:
    """``dx`` and the gradient through the norm ``n``, added."""
    n, g = wide(n_TD), wide(dn_TD)
    through_TD = scale * g - n * ((n * g).mean(-1, keepdim=True) / scale)
    return (dx_TD + inverse_T[:, None] * through_TD).to(dx_TD.dtype)


@norm_backward_op.register_fake
def _norm_backward_shape(dn: Tensor, dx: Tensor, n: Tensor, inverse: Tensor, scale: float) -> Tensor:
    return dx.new_empty(dx.shape)


@norm_backward_op.register_kernel("cuda")
def _norm_backward_on_gpu(dn: Tensor, dx: Tensor, n: Tensor, inverse: Tensor, scale: float) -> Tensor:
    from golf_lightning.kernels.triton_mixing import launch_norm_backward

    return launch_norm_backward(dn.contiguous(), dx.contiguous(), n, inverse, scale)
