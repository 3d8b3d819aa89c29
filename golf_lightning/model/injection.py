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

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""Attention over the pass's segments; the last argument says whether padding rows must come out as zeros."""

Adapt = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Called as ``adapt(base_TO, x_TD, scale_O)`` for the rows of a pass: ``base`` with ``scale`` times what the adapter
makes of ``x`` added to it; no scale means 1."""


@dataclass(frozen=True, slots=True)
class LayerAdapters:
    """The adapters of one virtual layer; ``None`` adds nothing.

    Attributes:
        qkv: reads the normalized block input and adds to the joint projection, before head norm and rotary.
        attn: reads the same input and adds to the attention's output, which is scaled already. In the last layer of a
            pass that wants some rows only, these rows.
        mlp: likewise reads the MLP's normalized input and adds to the MLP's output, which is scaled already.
    """

    qkv: Adapt | None = None
    attn: Adapt | None = None
    mlp: Adapt | None = None


class Adapters(Protocol):
    """A set of adapters for a whole pass, one entry per virtual layer."""

    def layer(self, virtual: int) -> LayerAdapters:
        """Adapters of the virtual layer that runs ``virtual``-th, from 0."""
        ...

    def head(self, logits_TV: Tensor, x_TD: Tensor) -> Tensor:
        """The raw logits of these rows with what the head's adapter adds to them, before the softcap."""
        ...


NO_ADAPTERS = LayerAdapters()


@dataclass(frozen=True, slots=True)
class Context:
    """What a pass sees beside its own rows, where these continue documents whose beginnings ran before.

    Attributes:
        positions: ``[T]`` int64, position of each row in its document.
        attend: attention of a virtual layer, from 0, given its queries, keys and values.
    """

    positions: Tensor
    attend: Callable[[int], Attend]
