"""Low-rank adapters of many documents at once, and the reproducible noise they start from.

Every matrix of the network may get a LoRA pair (Hu et al. 2021, arXiv:2106.09685): ``A [r, in]`` uniform in
+-1/sqrt(in), ``B [out, r]`` zero, so that a document starts with the network as it was trained. Which pairs there are,
and the two adapters parallel to attention and MLP, follow record PR #1536.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.injection import Delta, LayerAdapters

# S slots (documents at a time), W rows of one slot, T = S W tokens, D width, C inputs, V vocabulary, r rank, U virtual
# layers, F documents

SITES = ("q", "k", "v", "attn", "mlp", "head")
"""Places for an adapter. A site's position here is part of its noise key: append, never reorder."""


@dataclass(kw_only=True)
class AdapterConfig:
    """Which adapters a document gets. Defaults are the recipe's.

    Args:
        rank: inner dimension of every adapter.
        alpha: scales every adapter's output by ``alpha / rank``; null leaves it unscaled.
        q: adapt the query projections.
        k: adapt the key projections.
        v: adapt the value projections.
        head: adapt the output head.
        attn: add an adapter parallel to attention.
        mlp: add an adapter parallel to the MLP.
    """

    rank: int = 96
    alpha: float | None = None
    q: bool = True
    k: bool = True
    v: bool = True
    head: bool = True
    attn: bool = True
    mlp: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise GolfError(f"rank is {self.rank}; it must be at least 1.")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise GolfError(f"alpha is {self.alpha}; it must be above 0, or null for no scaling.")
        if not self.sites:
            raise GolfError("Every adapter is switched off; switch one on, or set lr to 0 to score without adapters.")

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that are switched on, in the order of ``SITES``."""
        return tuple(site for site in SITES if getattr(self, site))

    @property
    def scale(self) -> float:
        """Factor on every adapter's output."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def adapter_shapes(config: GPTConfig, depth: int, adapters: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Shape of one document's tensors by name: ``site.a [U, r, D]`` and ``site.b [U, out, r]``; the head has no ``U``.

    Args:
        config: shape of the network.
        depth: virtual layers of the pass, ``model.plan.depth``.
        adapters: which adapters exist.
    """
    kv_width = config.kv_heads * config.head_dim
    outputs = {"k": kv_width, "v": kv_width, "head": config.vocab_size}
    shapes: dict[str, tuple[int, ...]] = {}
    for site in adapters.sites:
        layers = () if site == "head" else (depth,)
        shapes[f"{site}.a"] = (*layers, adapters.rank, config.width)
        shapes[f"{site}.b"] = (*layers, outputs.get(site, config.width), adapters.rank)
    return shapes


class DocumentAdapters:
    """The adapters of S documents for one pass, as the model's injection points want them.

    The rows of the pass are S windows of equal length, one after the other; so are the rows given to the head.

    Args:
        values: tensors ``[S, *shape]`` named as in :func:`adapter_shapes`; gradients flow to them.
        dtype: dtype in which the model computes.
        scale: factor on every adapter's output.
    """

    def __init__(self, values: Mapping[str, Tensor], *, dtype: torch.dtype, scale: float = 1.0) -> None:
        used = {name: value.to(dtype) for name, value in values.items()}
        self._head = _low_rank(used["head.a"], used["head.b"], scale) if "head.a" in used else None
        # Taken apart once for all layers: indexing layer by layer would build a full-size gradient for each of them.
        layered = {name: value.unbind(1) for name, value in used.items() if not name.startswith("head.")}
        sites = sorted({name.partition(".")[0] for name in layered})
        depth = len(next(iter(layered.values()), ()))
        self._layers = [
            LayerAdapters(
                **{site: _low_rank(layered[f"{site}.a"][u], layered[f"{site}.b"][u], scale) for site in sites}
            )
            for u in range(depth)
        ]

    def layer(self, virtual: int) -> LayerAdapters:
        """See :class:`~golf_lightning.model.injection.Adapters`."""
        return self._layers[virtual] if self._layers else LayerAdapters()

    def head(self, x_TD: Tensor) -> Tensor:
        """See :class:`~golf_lightning.model.injection.Adapters`; a scalar zero where the head is not adapted."""
        return x_TD.new_zeros(()) if self._head is None else self._head(x_TD)


def _low_rank(a_SrC: Tensor, b_SOr: Tensor, scale: float) -> Delta:
    a_SCr, b_SrO = a_SrC.transpose(1, 2), b_SOr.transpose(1, 2)

    def delta(x_TC: Tensor) -> Tensor:
        h_SWr = torch.bmm(x_TC.unflatten(0, (a_SCr.shape[0], -1)), a_SCr)
        out_SWO = torch.bmm(h_SWr if scale == 1.0 else h_SWr * scale, b_SrO)
        return out_SWO.flatten(0, 1)

    return delta


def initial_a(seed: int, documents_F: Tensor, site: str, shape: tuple[int, ...]) -> Tensor:
    """A document's starting value of ``site.a``, ``[F, *shape]`` float32, uniform in +-1/sqrt(inputs).

    A value depends on (seed, document, site, place in the tensor) and on nothing else: not on the device, on what else
    is drawn with it, or on what was drawn before. Virtual layers are the first dimension of ``shape``, so their values
    do not depend on the depth either. The generator is SplitMix64 (Steele, Lea and Flood 2014), started at a hash of
    the key, whose n-th output can be computed directly.

    Args:
        seed: at least 0.
        documents_F: ``[F]`` int64 document indices.
        site: one of ``SITES``.
        shape: ``([U,] r, inputs)``.
    """
    key_F = _mix(torch.full_like(documents_F, _signed(seed + _GOLDEN)))
    for part_F in (documents_F, torch.full_like(documents_F, SITES.index(site))):
        key_F = _mix(key_F + (part_F + 1) * _signed(_GOLDEN))
    count = torch.arange(1, math.prod(shape) + 1, device=documents_F.device)
    bits = _mix(key_F[:, None] + count * _signed(_GOLDEN))
    # The top 23 bits as the odd numbers in +-2^23: exact in float32 and free of bias, so one rounding is left.
    odd = (_logical_shift(bits, 41) << 1) + (1 - 2**23)
    return (odd.float() * (2.0**-23 * shape[-1] ** -0.5)).unflatten(1, shape)


_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """The same 64 bits as a signed number: torch has no arithmetic on unsigned ones, and signed products wrap alike."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function."""
    x = (x ^ _logical_shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _logical_shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _logical_shift(x, 31)
