"""Triton kernels of the slots' optimizer and their starting noise; imported only where they run."""

# Triton takes the types of a kernel's arguments from the call.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from golf_lightning.kernels.slot_adamw import AdamWConstants, SlotTensor

BLOCK = 2048


@triton.jit
def _adamw_kernel(
    value_ptr, used_ptr, first_ptr, second_ptr, grad_ptr, slot_ptr, correction_ptr, root_ptr, empty, count,
    lr, beta1, beta2, eps, decay, FIRST: tl.constexpr, COPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.load(slot_ptr + tl.program_id(1))
    if slot == empty:
        return
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    at = slot.to(tl.int64) * count + place
    value = tl.load(value_ptr + at, mask=inside, other=0.0)
    second = tl.load(second_ptr + at, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    second = beta2 * second + (1 - beta2) * grad * grad
    first = grad
    if FIRST:
        first = beta1 * tl.load(first_ptr + at, mask=inside, other=0.0) + (1 - beta1) * grad
        tl.store(first_ptr + at, first, mask=inside)
    step = lr / tl.load(correction_ptr + tl.program_id(1))
    root = tl.load(root_ptr + tl.program_id(1))
    value = value * (1 - lr * decay) - step * first / (tl.sqrt(second) / root + eps)
    tl.store(second_ptr + at, second, mask=inside)
    tl.store(value_ptr + at, value, mask=inside)
    if COPY:
        tl.store(used_ptr + at, value.to(used_ptr.dtype.element_ty), mask=inside)


def launch_adamw(
    tensor: SlotTensor, grad_P: Tensor, slots_S: Tensor, correction1_S: Tensor, root2_S: Tensor,
    constants: AdamWConstants,
) -> None:  # fmt: skip
    """See the facade."""
    count = tensor.value[0].numel()
    copy = tensor.used is not tensor.value
    _adamw_kernel[(triton.cdiv(count, BLOCK), slots_S.shape[0])](
        tensor.value, tensor.used if copy else None, tensor.first, tensor.second, grad_P.contiguous(), slots_S,
        correction1_S, root2_S, tensor.value.shape[0] - 1, count,
        constants.lr, constants.beta1, constants.beta2, constants.eps, constants.weight_decay,
        FIRST=tensor.first is not None, COPY=copy, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
