"""Facade of what joins branches to the residual stream while no weight asks for a gradient: weighted sums and norms.

Test-time training runs without torch.compile, so each sum, gate and norm would be a pass over the rows of its own. Here
a sum, its norm, and in the backward pass the sum of what the norm's readers give back, take one pass each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from golf_lightning.kernels.heads import NORM_EPS

# T tokens, D width, N terms

MOST_TERMS = 3
"""Terms of one sum."""


def join(
    terms: Sequence[Tensor], weights: Tensor | None = None, *, scale: float = 0.0, readers: int = 0
) -> tuple[Tensor, ...]:
    """``u = sum_i w_i x_i`` and, for each reader, ``scale * rms_norm(u)``, ``[T, D]`` each.

    Args:
        terms: one to three of ``[T, D]``.
        weights: ``[N, D]`` or ``[N, 1]``, constant; none for a plain sum.
        scale: factor on the norm.
        readers: how often the norm is given, at most three times: every reader's gradient comes back by itself.
    """
    out: tuple[Tensor, ...] = _Join.apply(weights, scale, readers, *terms)
    return out


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def forward(terms: Sequence[Tensor], weights: Tensor | None, scale: float, norm: bool) -> tuple[Tensor, Tensor | None]:
    """The sum and its norm, if that is wanted, in plain PyTorch."""
    wide = [_wide(x) for x in terms]
    if weights is not None:
        wide = [w * x for w, x in zip(_wide(weights), wide, strict=True)]
    u = torch.stack(wide).sum(0).to(terms[0].dtype)
    n = _wide(u)
    n = n * torch.rsqrt(n.square().mean(-1, keepdim=True) + NORM_EPS) * scale
    return u, n.to(u.dtype) if norm else None


def backward(
    du: Tensor | None, dn: Sequence[Tensor], u: Tensor, weights: Tensor | None, scale: float, wanted: Sequence[bool]
) -> list[Tensor]:
    """Gradients of the wanted terms, without weights one for all of them, in plain PyTorch."""
    total = _wide(torch.zeros_like(u) if du is None else du)
    if dn:
        x = _wide(u)
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
        x, g = x * inverse, torch.stack([_wide(part) for part in dn]).sum(0) * scale
        total = total + inverse * (g - x * (g * x).mean(-1, keepdim=True))
    if weights is None:
        return [total.to(u.dtype)]
    return [(w * total).to(u.dtype) for w, want in zip(_wide(weights), wanted, strict=True) if want]


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor | None, scale: float, readers: int, *terms: Tensor) -> tuple[Tensor, ...]:
        if terms[0].is_cuda:
            from golf_lightning.kernels.triton_joining import launch_join

            u, n = launch_join([x.contiguous() for x in terms], weights, scale, readers > 0, NORM_EPS)
        else:
            u, n = forward(terms, weights, scale, readers > 0)
        ctx.save_for_backward(u, weights)
        ctx.scale, ctx.terms = scale, len(terms)
        ctx.set_materialize_grads(False)
        return (u,) if n is None else (u, *(n.view_as(n) for _ in range(readers)))

    @staticmethod
    def backward(ctx: Any, du: Tensor | None, *dn: Tensor | None) -> tuple[Tensor | None, ...]:
        u, weights = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[3:])
        given = [g.contiguous() for g in dn if g is not None]
        if weights is None and not given:
            return None, None, None, *(du,) * ctx.terms
        du = None if du is None else du.contiguous()
        if u.is_cuda:
            from golf_lightning.kernels.triton_joining import launch_join_backward

            found = launch_join_backward(du, given, u, weights, ctx.scale, wanted, NORM_EPS)
        else:
            found = backward(du, given, u, weights, ctx.scale, wanted)
        parts = iter(found if weights is not None else found * sum(wanted))
        return None, None, None, *(next(parts) if want else None for want in wanted)
