"""Facade of what a document's optimizer does to its slot: AdamW on some slots of a tensor, and their starting noise.

AdamW is Loshchilov and Hutter's (arXiv:1711.05101). The fused path reads and writes every value once, in place, and
leaves the copy in the compute dtype current; it touches no slot but those named.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend

# P slots, S slots of a step, N values of a slot


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWConstants:
    """AdamW's constants; see :class:`~golf_lightning.evaluation.config.TTTConfig`."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


@dataclass(frozen=True, slots=True)
class SlotTensor:
    """One tensor of every slot with its optimizer state, ``[P, ...]`` each, contiguous.

    Attributes:
        value: the values, at least float32.
        used: their copy in the compute dtype, or ``value`` itself where that is the same dtype.
        first: first moment, or None where its decay is 0.
        second: second moment.
    """

    value: Tensor
    used: Tensor
    first: Tensor | None
    second: Tensor


def corrections(steps_S: Tensor, constants: AdamWConstants, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What divides the first moment and the root of the second after so many steps, ``[S]`` each."""
    steps_S = steps_S.double()
    return (1 - constants.beta1**steps_S).to(dtype), (1 - constants.beta2**steps_S).sqrt().to(dtype)


def adamw_(
    tensor: SlotTensor, grad_P: Tensor, slots_S: Tensor, corrected: tuple[Tensor, Tensor], constants: AdamWConstants,
    *, backend: KernelBackend = "reference",
) -> None:  # fmt: skip
    """One step of AdamW on these slots.

    Args:
        tensor: what is updated in place.
        grad_P: gradient, shaped like the values; read for these slots only.
        slots_S: int32; the last slot stands for none, and may be written to.
        corrected: from :func:`corrections`, in the values' dtype, for each slot's number of steps with this one.
        constants: learning rate and so on.
        backend: ``reference`` or ``triton``.
    """
    if backend == "triton":
        from golf_lightning.kernels.triton_slot_adamw import launch_adamw

        launch_adamw(tensor, grad_P, slots_S, *corrected, constants)
        return
    dtype = tensor.value.dtype
    grad, value, second = (x.index_select(0, slots_S).to(dtype) for x in (grad_P, tensor.value, tensor.second))
    correction1, root2 = (x.view(-1, *[1] * (grad.ndim - 1)) for x in corrected)
    second = second.mul(constants.beta2).addcmul(grad, grad, value=1 - constants.beta2)
    first = grad
    if tensor.first is not None:
        first = tensor.first.index_select(0, slots_S).lerp(grad, 1 - constants.beta1)
        tensor.first.index_copy_(0, slots_S.long(), first)
    step = constants.lr / correction1 * first / (second.sqrt() / root2 + constants.eps)
    value = value * (1 - constants.lr * constants.weight_decay) - step
    tensor.second.index_copy_(0, slots_S.long(), second)
    tensor.value.index_copy_(0, slots_S.long(), value)
    if tensor.used is not tensor.value:
        tensor.used.index_copy_(0, slots_S.long(), value.to(tensor.used.dtype))
