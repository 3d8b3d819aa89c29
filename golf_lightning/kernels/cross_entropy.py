"""Facade of the loss: softcapped cross-entropy in float32 from logits in any dtype.

The fused path computes loss and gradient of the logits in one pass: it reads the raw logits once, writes their
gradient in the logits' own dtype, and nothing of the vocabulary's width in float32. Whatever scale the loss gets later
is one number a row, so the backward pass applies it to the narrow side of the head's products.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend

# T tokens, V vocabulary, D width

IGNORED = -100
"""Target value of positions that are not scored (padding)."""


def softcap_logits(logits_TV: Tensor, softcap: float) -> Tensor:
    """``softcap * tanh(z / softcap)`` in at least float32."""
    z = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    return softcap * torch.tanh(z / softcap)


def softcapped_nll(
    logits_TV: Tensor, targets_T: Tensor, softcap: float, *, backend: KernelBackend = "reference"
) -> Tensor:
    """Negative log-likelihood of each target in nats.

    Args:
        logits_TV: raw logits, before the softcap.
        targets_T: int64 targets; ``IGNORED`` rows give 0 and no gradient.
        softcap: see :func:`softcap_logits`.
        backend: ``reference`` or ``triton``.

    Returns:
        ``[T]`` float32 (float64 for float64 logits).
    """
    if backend == "triton":
        return _Loss.apply(logits_TV, targets_T, softcap, _differentiated(logits_TV))
    return F.cross_entropy(softcap_logits(logits_TV, softcap), targets_T, ignore_index=IGNORED, reduction="none")


def head_nll(
    n_TD: Tensor, head_VD: Tensor, targets_T: Tensor, softcap: float, *, backend: KernelBackend = "reference"
) -> Tensor:
    """:func:`softcapped_nll` of the logits ``n head^T``.

    Args:
        n_TD: final hidden states.
        head_VD: output head.
        targets_T: int64 targets; ``IGNORED`` rows give 0 and no gradient.
        softcap: see :func:`softcap_logits`.
        backend: ``reference`` or ``triton``.
    """
    if backend == "triton":
        return _HeadLoss.apply(n_TD, head_VD, targets_T, softcap, _differentiated(n_TD, head_VD))
    return softcapped_nll(F.linear(n_TD, head_VD), targets_T, softcap)


@torch.library.custom_op("golf::softcapped_nll", mutates_args=())
def loss_and_gradient(
    logits_TV: Tensor, targets_T: Tensor, softcap: float, want_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Loss ``[T]`` and its gradient ``[T, V]`` with respect to the logits, in their dtype (``[0]`` if not wanted)."""
    z = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    bent_TV = torch.tanh(z / softcap)
    log_p_TV = torch.log_softmax(softcap * bent_TV, dim=-1)
    scored_T = targets_T != IGNORED
    index_T1 = torch.where(scored_T, targets_T, 0)[:, None]
    nll_T = torch.where(scored_T, -log_p_TV.gather(1, index_T1)[:, 0], 0)
    if not want_gradient:
        return nll_T, logits_TV.new_empty(0)
    p_TV = log_p_TV.exp()
    error_TV = p_TV.scatter_add(1, index_T1, torch.full_like(index_T1, -1, dtype=p_TV.dtype))
    gradient_TV = torch.where(scored_T[:, None], error_TV * (1 - bent_TV * bent_TV), 0)
    return nll_T, gradient_TV.to(logits_TV.dtype)


@loss_and_gradient.register_fake
def _shapes(logits: Tensor, targets: Tensor, softcap: float, want_gradient: bool) -> tuple[Tensor, Tensor]:
    nll = logits.new_empty(targets.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
    return nll, logits.new_empty(logits.shape if want_gradient else 0)


@loss_and_gradient.register_kernel("cuda")
def _on_gpu(logits: Tensor, targets: Tensor, softcap: float, want_gradient: bool) -> tuple[Tensor, Tensor]:
    from golf_lightning.kernels.triton_loss import launch

    return launch(logits.contiguous(), targets, softcap, want_gradient, ignored=IGNORED)


def _differentiated(*inputs: Tensor) -> bool:
    """Inside an autograd function gradients look switched off, and inputs ask for them even where they are."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, targets_T: Tensor, softcap: float, differentiated: bool) -> Tensor:
        nll_T, gradient_TV = torch.ops.golf.softcapped_nll(logits_TV, targets_T, softcap, differentiated)
        ctx.save_for_backward(gradient_TV)
        return nll_T

    @staticmethod
    def backward(ctx: Any, scale_T: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_TV,) = ctx.saved_tensors
        return gradient_TV * scale_T[:, None].to(gradient_TV.dtype), None, None, None


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, n_TD: Tensor, head_VD: Tensor, targets_T: Tensor, softcap: float, differentiated: bool
    ) -> Tensor:
        logits_TV = F.linear(n_TD, head_VD)
        nll_T, gradient_TV = torch.ops.golf.softcapped_nll(logits_TV, targets_T, softcap, differentiated)
        ctx.save_for_backward(gradient_TV, n_TD, head_VD)
        return nll_T

    @staticmethod
    def backward(ctx: Any, scale_T: Tensor) -> tuple[Tensor | None, ...]:
        gradient_TV, n_TD, head_VD = ctx.saved_tensors
        scale_T1 = scale_T[:, None]
        dn_TD = dhead_VD = None
        if ctx.needs_input_grad[0]:
            dn_TD = ((gradient_TV @ head_VD) * scale_T1).to(n_TD.dtype)
        if ctx.needs_input_grad[1]:
            dhead_VD = gradient_TV.T @ (n_TD * scale_T1).to(n_TD.dtype)
        return dn_TD, dhead_VD, None, None, None
