"""Adapters and optimizer state of the documents in the slots."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.kernels.slot_adamw import AdamWConstants, Aside, Learning, SlotTensor, adamw_, corrections
from golf_lightning.model.adapters import AdapterGroup, initial_a

# P slots, S documents of a step, F documents that enter, U layers, D width, O outputs, r rank, R = r times sites


class SlotState:
    """One adapter set and one AdamW a slot, each with its own step count.

    Everything is indexed by layer, then by slot: a layer's values of all slots are one block that kernels read where it
    is, and a document's share of it is reset and updated without touching its neighbours. One slot more than asked
    for, the last, belongs to no document and takes what padding writes.

    Args:
        groups: the adapters there are.
        width: inputs of every adapter.
        config: number of slots, rank, seed and the optimizer's constants.
        dtype: dtype of all values, at least float32.
        compute_dtype: dtype in which the model uses them.
        device: where they live.

    Attributes:
        leaves: by group and part, ``qkv.a`` and so on, one tensor a virtual layer, ``[P, R, D]`` or ``[P, O, r]``, in
            the compute dtype, to run and to differentiate by. They follow every update.
        layers: the same with their optimizer state.
    """

    def __init__(
        self,
        groups: Sequence[AdapterGroup],
        width: int,
        config: TTTConfig,
        *,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.groups, self.config = list(groups), config
        self._aside = Aside() if device.type == "cuda" else None
        self.empty, self.dtype = config.slots, dtype
        self.constants = AdamWConstants(
            **{name: getattr(config, name) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")}
        )
        self._steps = torch.zeros(config.slots + 1, dtype=torch.float64, device=device)
        self._tensors: dict[str, SlotTensor] = {}
        rank = config.adapters.rank
        for group in groups:
            shapes = {"a": (rank * len(group.sites), width), "b": (group.outputs, rank)}
            for part, shape in shapes.items():
                whole = (group.depth, config.slots + 1, *shape)
                value, second = (torch.zeros(whole, dtype=dtype, device=device) for _ in range(2))
                # At beta1 = 0 the first moment is the gradient.
                first = torch.zeros_like(value) if config.beta1 else None
                used = value if dtype == compute_dtype else torch.zeros(whole, dtype=compute_dtype, device=device)
                self._tensors[f"{group.name}.{part}"] = SlotTensor(value, used, first, second)
        self.leaves: dict[str, list[Tensor]] = {
            name: [layer.detach().requires_grad_() for layer in tensor.used.unbind(0)]
            for name, tensor in self._tensors.items()
        }
        self.layers = {name: _by_layer(tensor) for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def reset(self, slots_F: Tensor, documents_F: Tensor) -> None:
        """Give slots to new documents: A drawn, everything else zero. Both int64, on the device."""
        self._steps.index_fill_(0, slots_F, 0)
        rank = self.config.adapters.rank
        for group in self.groups:
            a, b = (self._tensors[f"{group.name}.{part}"] for part in "ab")
            for state in (a.second, a.first, b.second, b.first, b.value, b.used):
                if state is not None:
                    state.index_fill_(1, slots_F, 0)
            for i, site in enumerate(group.sites):
                # The head has no layers, here as in its noise; elsewhere they come first.
                shape = (group.depth, rank, a.value.shape[-1])
                noise = initial_a(self.config.seed, documents_F, site, shape if site != "head" else shape[1:])
                noise = noise.unflatten(1, shape[:2]) if site == "head" else noise
                rows = slice(i * rank, (i + 1) * rank)
                for whole in {id(x): x for x in (a.value, a.used)}.values():
                    whole[:, :, rows].index_copy_(1, slots_F, noise.transpose(0, 1).to(whole.dtype))

    @torch.no_grad()
    def learning(self, slots_S: Tensor) -> Learning:
        """The next step of these slots, counted as taken: int32, on the device; the last slot stands for none."""
        self._steps.index_add_(0, slots_S, torch.ones_like(slots_S, dtype=torch.float64))
        corrected = corrections(self._steps.index_select(0, slots_S), self.constants, self.dtype)
        return Learning(slots_S, corrected, self.constants, self._aside)

    @torch.no_grad()
    def update(self, learning: Learning, grads: Mapping[str, Sequence[Tensor]]) -> None:
        """Take a step by gradients of :attr:`leaves`, alike in structure."""
        for name, layers in self.layers.items():
            for tensor, grad in zip(layers, grads[name], strict=True):
                adamw_(tensor, grad, learning)


def _by_layer(tensor: SlotTensor) -> list[SlotTensor]:
    layers = []
    for u, value in enumerate(tensor.value.unbind(0)):
        used = value if tensor.used is tensor.value else tensor.used[u]
        layers.append(SlotTensor(value, used, None if tensor.first is None else tensor.first[u], tensor.second[u]))
    return layers
