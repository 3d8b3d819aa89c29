"""Facade of what a document's optimizer does to its slot: AdamW on some slots of a tensor, and their starting noise.

AdamW is Loshchilov and Hutter's (arXiv:1711.05101). The fused path is part of the backward pass of
:mod:`~golf_lightning.kernels.low_rank`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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


class Aside:
    """A CUDA stream for work whose results nothing on the main stream reads before :meth:`join`."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._held: list[Tensor] = []

    def run(self, work: Callable[[], None], *held: Tensor) -> None:
        """Launch ``work`` after what the current stream has so far; ``held`` is what it reads."""
        self._stream.wait_stream(torch.cuda.current_stream())
        # The allocator would give their memory to the main stream as soon as that has done with them.
        self._held += held
        with torch.cuda.stream(self._stream):
            work()

    def join(self) -> None:
        """Let the current stream wait for everything that was launched."""
        torch.cuda.current_stream().wait_stream(self._stream)
        self._held.clear()


@dataclass(frozen=True, slots=True)
class Learning:
    """A step of AdamW that some slots take.

    Attributes:
        slots: ``[S]`` int32; the last slot of all stands for none, and may be written to.
        corrected: what divides the first moment and the root of the second, ``[S]`` each, from :func:`corrections`.
        constants: learning rate and so on.
        aside: where the step is taken, on a GPU; None for the current stream.
    """

    slots: Tensor
    corrected: tuple[Tensor, Tensor]
    constants: AdamWConstants
    aside: Aside | None = None


def corrections(steps_S: Tensor, constants: AdamWConstants, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What divides the first moment and the root of the second after so many steps, ``[S]`` each."""
    steps_S = steps_S.double()
    return (1 - constants.beta1**steps_S).to(dtype), (1 - constants.beta2**steps_S).sqrt().to(dtype)


def adamw_(tensor: SlotTensor, grad_P: Tensor, learning: Learning) -> None:
    """One step of AdamW, in plain PyTorch.

    Args:
        tensor: what is updated in place; no slot but those named is touched.
        grad_P: gradient, shaped like the values; read for these slots only.
        learning: the step.
    """
    slots_S, constants = learning.slots, learning.constants
    dtype = tensor.value.dtype
    grad, value, second = (x.index_select(0, slots_S).to(dtype) for x in (grad_P, tensor.value, tensor.second))
    correction1, root2 = (x.view(-1, *[1] * (grad.ndim - 1)) for x in learning.corrected)
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
