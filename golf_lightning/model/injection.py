"""What may enter a forward pass from outside: low-rank adapters and an activation recorder.

Both are optional and both go through the one block that training uses, so that test-time training and calibration can
never diverge from the network that was trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

# T tokens, D width, C inputs of a matrix, V vocabulary

Recorder = Callable[[str, Tensor], None]
"""Called as ``recorder(site, x_TC)`` with the activations that enter a matrix; sites are those of ``matrix_inputs``."""

Delta = Callable[[Tensor], Tensor]
"""Maps an input ``[T, D]`` to what is added to a matrix's output for the same rows."""


@dataclass(frozen=True, slots=True)
class LayerAdapters:
    """The adapters of one virtual layer; ``None`` adds nothing.

    Attributes:
        q, k, v: read the normalized block input and add to the projections, before head norm and rotary.
        attn: reads the same input and adds to the attention's output, before its scale.
        mlp: reads the MLP's normalized input and adds to the MLP's output, before its scale.
    """

    q: Delta | None = None
    k: Delta | None = None
    v: Delta | None = None
    attn: Delta | None = None
    mlp: Delta | None = None


class Adapters(Protocol):
    """A set of adapters for a whole pass, one entry per virtual layer."""

    def layer(self, virtual: int) -> LayerAdapters:
        """Adapters of the virtual layer that runs ``virtual``-th, from 0."""
        ...

    def head(self, x_TD: Tensor) -> Tensor:
        """What is added to the raw logits ``[T, V]`` of these rows, before the softcap."""
        ...


NO_ADAPTERS = LayerAdapters()


def add(base: Tensor, delta: Delta | None, x: Tensor) -> Tensor:
    """``base + delta(x)``, or ``base`` where there is no adapter."""
    return base if delta is None else base + delta(x)
