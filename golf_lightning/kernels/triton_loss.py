"""Triton kernel of the softcapped cross-entropy; imported only where it runs."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from golf_lightning.errors import GolfError

# T tokens, V vocabulary

LARGEST_VOCABULARY = 65_536
LARGEST_SOFTCAP = 40.0
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _loss_kernel(
    logits_ptr,
    target_ptr,
    nll_ptr,
    gradient_ptr,
    vocabulary,
    softcap,
    ignored,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of logits a program, held in registers between the loss and its gradient."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < vocabulary
    z = tl.load(logits_ptr + row * vocabulary + columns, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + row)
    scored = target != ignored
    z_target = tl.load(logits_ptr + row * vocabulary + target, mask=scored, other=0.0).to(tl.float32)
    # tanh(y) = 1 - 2 r with r = 1 / (1 + exp(2 y)). Softcapped logits never exceed the softcap, so it takes the place
    # of the row's largest: exp(capped - softcap) = exp(-2 softcap r), which float32 holds up to a softcap of 40.
    up, down = 2.0 * LOG2E / softcap, -2.0 * LOG2E * softcap
    r, r_target = _share(z, up), _share(z_target, up)
    e = tl.where(inside, tl.exp2(r * down), 0.0)
    total = tl.sum(e, 0)
    tl.store(nll_ptr + row, tl.where(scored, tl.log(total) + 2.0 * softcap * r_target, 0.0))
    if GRADIENT:
        part = tl.where(scored, 4.0 / total, 0.0)
        gradient = e * part * (r - r * r)
        tl.store(gradient_ptr + row * vocabulary + columns, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)
        # The target's own gradient has one term more; written over the other once that is there, it costs the rest of
        # the row no comparison.
        error = tl.exp2(r_target * down) * part - 4.0
        gradient = error * (r_target - r_target * r_target)
        tl.debug_barrier()
        to = gradient_ptr + row * vocabulary + target
        tl.store(to, gradient.to(gradient_ptr.dtype.element_ty), mask=scored)


@triton.jit
def _share(z, up):
    """``1 / (1 + 2^(z up))``, by a reciprocal square root: a division takes more instructions."""
    root = tl.rsqrt(1.0 + tl.exp2(z * up))
    return root * root


def launch(
    logits_TV: Tensor, targets_T: Tensor, softcap: float, want_gradient: bool, *, ignored: int, warps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Loss ``[T]`` float32 and gradient ``[T, V]`` in the logits' dtype (``[0]`` if not wanted).

    Raises:
        GolfError: the vocabulary is too large for one row in registers, or the softcap for float32.
    """
    tokens, vocabulary = logits_TV.shape
    if vocabulary > LARGEST_VOCABULARY:
        raise GolfError(
            f"The triton loss serves up to {LARGEST_VOCABULARY} pieces, not {vocabulary}; choose reference."
        )
    if softcap > LARGEST_SOFTCAP:
        raise GolfError(f"The triton loss serves softcaps up to {LARGEST_SOFTCAP:g}, not {softcap}; choose reference.")
    nll_T = torch.empty(tokens, dtype=torch.float32, device=logits_TV.device)
    gradient = torch.empty_like(logits_TV) if want_gradient else logits_TV.new_empty(0)
    block = triton.next_power_of_2(vocabulary)
    if tokens:
        _loss_kernel[(tokens,)](
            logits_TV,
            targets_T,
            nll_T,
            gradient,
            vocabulary,
            softcap,
            ignored,
            GRADIENT=want_gradient,
            BLOCK=block,
            num_warps=warps or min(16, max(1, block // 1024)),
        )
    return nll_T, gradient
