"""Facade of the loss: softcapped cross-entropy in float32 from logits in any dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor

# T tokens, V vocabulary

IGNORED = -100
"""Target value of positions that are not scored (padding)."""


def softcap_logits(logits_TV: Tensor, softcap: float) -> Tensor:
    """``softcap * tanh(z / softcap)`` in at least float32."""
    z = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    return softcap * torch.tanh(z / softcap)


def softcapped_nll(logits_TV: Tensor, targets_T: Tensor, softcap: float) -> Tensor:
    """Negative log-likelihood of each target in nats.

    Args:
        logits_TV: raw logits, before the softcap.
        targets_T: int64 targets; ``IGNORED`` rows give 0 and no gradient.
        softcap: see :func:`softcap_logits`.

    Returns:
        ``[T]`` float32 (float64 for float64 logits).
    """
    return F.cross_entropy(softcap_logits(logits_TV, softcap), targets_T, ignore_index=IGNORED, reduction="none")
