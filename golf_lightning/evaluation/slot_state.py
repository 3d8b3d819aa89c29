"""Adapters and optimizer state of the documents in the slots."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.model.adapters import initial_a

# P slots, S documents of a step, F documents that enter


class SlotState:
    """One adapter set and one AdamW (Loshchilov and Hutter, arXiv:1711.05101) a slot, each with its own step count.

    Tensors are indexed by slot first, so that a document's state is one block a tensor: it is reset, and updated by
    torch's fused kernel, in place and without touching its neighbours.

    Args:
        shapes: shape of one document's tensors, from :func:`~golf_lightning.model.adapters.adapter_shapes`.
        config: number of slots, seed and the optimizer's constants.
        dtype: dtype of all values, at least float32.
        device: where they live.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], config: TTTConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config = config

        def zeros() -> dict[str, Tensor]:
            return {
                name: torch.zeros(config.slots, *shape, dtype=dtype, device=device) for name, shape in shapes.items()
            }

        self._values, self._second = zeros(), zeros()
        # At beta1 = 0 the first moment is the gradient, so the gradient's own memory serves.
        self._first = zeros() if config.beta1 else None
        # The fused kernel counts steps per tensor.
        self._steps = {name: torch.zeros(config.slots, device=device) for name in shapes}
        states = (self._values, self._first or {}, self._second, self._steps)
        self._blocks = [{name: list(tensor) for name, tensor in state.items()} for state in states]

    @torch.no_grad()
    def reset(self, slots_F: Tensor, documents_F: Tensor) -> None:
        """Give slots to new documents: A drawn, everything else zero. Both int64, on the device."""
        for state in (self._second, self._steps, self._first or {}):
            for tensor in state.values():
                tensor.index_fill_(0, slots_F, 0)
        for name, value in self._values.items():
            site, _, part = name.partition(".")
            if part == "a":
                noise = initial_a(self.config.seed, documents_F, site, tuple(value.shape[1:]))
                value.index_copy_(0, slots_F, noise.to(value.dtype))
            else:
                value.index_fill_(0, slots_F, 0)

    def leaves(self, slots_S: Tensor, *, all_slots: bool) -> dict[str, Tensor]:
        """The values of these slots as ``[S, *shape]`` tensors to differentiate by.

        Args:
            slots_S: int64, on the device.
            all_slots: ``slots_S`` counts from 0 to the last slot; the values are then not copied.
        """
        chosen = {name: value if all_slots else value.index_select(0, slots_S) for name, value in self._values.items()}
        return {name: value.detach().requires_grad_() for name, value in chosen.items()}

    @torch.no_grad()
    def update(self, slots: list[int], rows: list[int], grads: Mapping[str, Tensor]) -> None:
        """One AdamW step of each of these slots.

        Args:
            slots: slots to update.
            rows: row of each in ``grads``.
            grads: gradients ``[S, *shape]`` by name; their memory is used up.
        """
        values, first, second, steps = (
            [blocks[name][slot] for name in grads for slot in slots] if blocks else [] for blocks in self._blocks
        )
        # The kernel walks memory in order, so a gradient must lie as its value does.
        by_row = {name: grad.contiguous().unbind(0) for name, grad in grads.items()}
        gradients = [by_row[name][row] for name in grads for row in rows]
        adamw(
            values,
            gradients,
            first or gradients,
            second,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            eps=self.config.eps,
            maximize=False,
        )
