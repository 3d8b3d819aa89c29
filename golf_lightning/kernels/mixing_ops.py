"""Weighted sums of streams with their norms as operators: plain PyTorch on a CPU, Triton kernels on a GPU."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf_lightning.kernels.heads import NORM_EPS

# T tokens, D width, W all numbers of the weights, P parts of a sum


def wide(x: Tensor) -> Tensor:
    """In at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Plan(NamedTuple):
    """Which sums to form. Values are the streams in order, then the sums.

    The weights are those of the first sum, then of the next. They are given in one row ``[W]``: first those with a
    number a column, then those of one number; a weight of 1 is not given.

    Attributes:
        places: for each weight its place among those given; -1 for a weight of 1.
        columns: how many of those given have a number a column.
        uses: for each sum a mask of the values in it.
        written: for each sum whether its values are results.
        scales: for each sum the factor of its norm; 0 where that is no result.
    """

    places: tuple[int, ...]
    columns: int
    uses: tuple[int, ...]
    written: tuple[bool, ...]
    scales: tuple[float, ...]


def _sums(
    streams: Sequence[Tensor], weights_W: Tensor, places: Sequence[int], columns: int, uses: Sequence[int]
) -> tuple[list[Tensor], list[tuple[int, int, Tensor | float]]]:
    """All values in at least float32; of each weight its sum, the value it multiplies, and itself."""
    values, terms = [wide(x) for x in streams], []
    width, left = streams[0].shape[1], list(places)
    rows = [*weights_W[: columns * width].view(columns, width), *weights_W[columns * width :], 1.0]
    for j, mask in enumerate(uses):
        terms += [(j, value, rows[left.pop(0)]) for value in range(len(values)) if mask >> value & 1]
        values.append(sum(weight * values[value] for n, value, weight in terms if n == j))
    return values, terms


@torch.library.custom_op("golf::mix", mutates_args=())
def mix_op(
    streams: Sequence[Tensor],
    weights_W: Tensor,
    places: Sequence[int],
    columns: int,
    uses: Sequence[int],
    written: Sequence[bool],
    scales: Sequence[float],
) -> list[Tensor]:
    """See ``mix`` of the facade and :class:`Plan`."""
    values, _ = _sums(streams, weights_W, places, columns, uses)
    results = []
    for total_TD, wanted, scale in zip(values[len(streams) :], written, scales, strict=True):
        results += [total_TD] * wanted
        if scale:
            results.append(total_TD * (scale * torch.rsqrt(total_TD.square().mean(-1, keepdim=True) + NORM_EPS)))
    # As an operator's results may not share memory with its inputs, nothing here is a view of them.
    return [x_TD.to(streams[0].dtype, copy=True) for x_TD in results]


@mix_op.register_fake
def _mix_shapes(streams: Sequence[Tensor], weights: Tensor, *given: Any) -> list[Tensor]:
    x, plan = streams[0], Plan(*given)
    return [x.new_empty(x.shape) for _ in range(sum(plan.written) + sum(scale != 0 for scale in plan.scales))]


@mix_op.register_kernel("cuda")
def _mix_on_gpu(streams: Sequence[Tensor], weights: Tensor, *given: Any) -> list[Tensor]:
    from golf_lightning.kernels.triton_mixing import launch_mix

    return launch_mix([x.contiguous() for x in streams], weights.contiguous(), *Plan(*given), NORM_EPS)


@torch.library.custom_op("golf::mix_backward", mutates_args=())
def mix_backward_op(
    grads: Sequence[Tensor],
    streams: Sequence[Tensor],
    weights_W: Tensor,
    places: Sequence[int],
    columns: int,
    uses: Sequence[int],
    written: Sequence[bool],
    scales: Sequence[float],
    again: int,
) -> list[Tensor]:
    """Gradients of the streams, and last that of the weights in parts to be added up ``[P, W]``, at least float32.

    ``grads`` are those of the results, in their order, and last one to add to that of the stream ``again``, if not -1.
    """
    values, terms = _sums(streams, weights_W, places, columns, uses)
    slopes = [torch.zeros_like(value) for value in values]
    if again >= 0:
        slopes[again] += grads[-1]
        grads = grads[:-1]
    left = list(grads)
    for j in reversed(range(len(uses))):
        total_TD, slope_TD = values[len(streams) + j], slopes[len(streams) + j]
        if scales[j]:
            inverse = torch.rsqrt(total_TD.square().mean(-1, keepdim=True) + NORM_EPS)
            unit_TD, g_TD = total_TD * inverse, wide(left.pop()) * scales[j]
            slope_TD += inverse * (g_TD - unit_TD * (g_TD * unit_TD).mean(-1, keepdim=True))
        if written[j]:
            slope_TD += left.pop()
        for _, value, weight in (term for term in terms if term[0] == j):
            slopes[value] += weight * slope_TD
    found = {
        place: (slopes[len(streams) + j] * values[value]).sum(0 if place < columns else (0, 1)).view(-1)
        for place, (j, value, _) in zip(places, terms, strict=True)
    }
    dweights = [wide(weights_W[:0]), *(found[place] for place in range(1 + max(places)))]
    return [x.to(streams[0].dtype) for x in slopes[: len(streams)]] + [torch.cat(dweights)[None]]


@mix_backward_op.register_fake
def _mix_backward_shapes(
    grads: Sequence[Tensor], streams: Sequence[Tensor], weights: Tensor, *given: Any
) -> list[Tensor]:
    x = streams[0]
    parts = _programs(streams, Plan(*given[:-1]))[0] if x.device.type == "cuda" else 1
    wide = torch.promote_types(x.dtype, torch.float32)
    return [x.new_empty(x.shape) for x in streams] + [x.new_empty(parts, *weights.shape, dtype=wide)]


def _programs(streams: Sequence[Tensor], plan: Plan) -> tuple[int, int]:
    """Programs of the backward kernel, as many as 132 multiprocessors hold at once, and rows that one takes at a time.

    By registers, as compiled: every value takes some, and every weight a column with its gradient.
    """
    held = len(streams) + len(plan.uses) + plan.columns
    programs, rows = (8, 4) if held < 6 else (1024 // (30 + 13 * held), 1)
    return min(132 * programs, streams[0].shape[0]), rows


@mix_backward_op.register_kernel("cuda")
def _mix_backward_on_gpu(
    grads: Sequence[Tensor], streams: Sequence[Tensor], weights: Tensor, *given: Any
) -> list[Tensor]:
    from golf_lightning.kernels.triton_mixing import launch_mix_backward

    grads, streams = ([x.contiguous() for x in xs] for xs in (grads, streams))
    plan = Plan(*given[:-1])
    programs, rows = _programs(streams, plan)
    weights = weights.contiguous()
    return launch_mix_backward(grads, streams, weights, *plan, given[-1], NORM_EPS, programs, rows)


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
