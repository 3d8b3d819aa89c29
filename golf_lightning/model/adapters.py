"""Low-rank adapters of many documents at once, and the reproducible noise they start from.

Every matrix of the network may get a LoRA pair (Hu et al. 2021, arXiv:2106.09685): ``A [r, in]`` uniform in
+-1/sqrt(in), ``B [out, r]`` zero, so that a document starts with the network as it was trained. Which pairs there are,
and the two adapters parallel to attention and MLP, follow record PR #1536.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from golf_lightning.errors import GolfError
from golf_lightning.kernels.backend import KernelBackend
from golf_lightning.kernels.low_rank import Learner, RowSlots, low_rank
from golf_lightning.kernels.slot_adamw import Learning, SlotTensor
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.injection import Adapt, LayerAdapters

# P slots, T rows, D width, O outputs, V vocabulary, r rank, R = r times adapters of a group, U layers, F documents

SITES = ("q", "k", "v", "attn", "mlp", "head")
"""Places for an adapter. A site's position here is part of its noise key: append, never reorder."""


@dataclass(kw_only=True)
class AdapterConfig:
    """Which adapters a document gets. Defaults are the recipe's.

    Args:
        rank: inner dimension of every adapter.
        alpha: scales every adapter's output by ``alpha / rank``; null for 1.5 times the rank, as in later records
            (144 at rank 96). The rank itself leaves it unscaled.
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
            raise GolfError(f"alpha is {self.alpha}; it must be above 0, or null for 1.5 times the rank.")
        if not self.sites:
            raise GolfError("Every adapter is switched off; switch one on, or set lr to 0 to score without adapters.")

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that are switched on, in the order of ``SITES``."""
        return tuple(site for site in SITES if getattr(self, site))

    @property
    def scale(self) -> float:
        """Factor on every adapter's output."""
        return 1.5 if self.alpha is None else self.alpha / self.rank


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


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterGroup:
    """Adapters that read the same rows and write into the same tensor, and therefore run together.

    Attributes:
        name: ``qkv``, ``attn``, ``mlp`` or ``head``.
        sites: the adapters, by their names in ``SITES``.
        columns: first and last-but-one column of the tensor that each of them writes.
        depth: virtual layers that have the group, 1 for the head.
    """

    name: str
    sites: tuple[str, ...]
    columns: tuple[tuple[int, int], ...]
    depth: int

    @property
    def outputs(self) -> int:
        """Columns written by all of them."""
        return sum(end - begin for begin, end in self.columns)


def adapter_groups(config: GPTConfig, depth: int, adapters: AdapterConfig) -> list[AdapterGroup]:
    """The groups that are switched on. Arguments as for :func:`adapter_shapes`."""
    kv_width = config.kv_heads * config.head_dim
    joint = {"q": 0, "k": config.width, "v": config.width + kv_width}
    groups = []
    for name, members in (("qkv", ("q", "k", "v")), ("attn", ("attn",)), ("mlp", ("mlp",)), ("head", ("head",))):
        sites = tuple(site for site in members if site in adapters.sites)
        shapes = adapter_shapes(config, depth, adapters)
        begins = [joint.get(site, 0) for site in sites]
        columns = tuple((begin, begin + shapes[f"{site}.b"][-2]) for begin, site in zip(begins, sites, strict=True))
        if sites:
            groups.append(AdapterGroup(name=name, sites=sites, columns=columns, depth=1 if name == "head" else depth))
    return groups


class DocumentAdapters:
    """The adapters of all slots for one pass, as the model's injection points want them.

    Args:
        groups: what there is, from :func:`adapter_groups`.
        values: by group and part, ``qkv.a`` and so on: the values ``[P, R, D]`` and ``[P, O, r]`` of each virtual
            layer (of the head, one), in the model's compute dtype; gradients flow to them.
        rows: which slot each row of the pass belongs to.
        head_rows: the same for the rows that are given to the head, and to the last layer past its attention.
        scale: factor on every adapter's output.
        backend: see :func:`~golf_lightning.kernels.low_rank.low_rank`.
        states: the same as ``values`` with their optimizer state, where the backward pass is to learn.
        learning: the step that it takes then.
    """

    def __init__(
        self,
        groups: Sequence[AdapterGroup],
        values: Mapping[str, Sequence[Tensor]],
        rows: RowSlots,
        head_rows: RowSlots,
        *,
        scale: float = 1.0,
        backend: KernelBackend = "reference",
        states: Mapping[str, Sequence[SlotTensor]] | None = None,
        learning: Learning | None = None,
    ) -> None:
        self._groups = {group.name: group for group in groups}
        self._values, self._rows, self._head_rows = values, rows, head_rows
        self._scale, self._backend = scale, backend
        self._states, self._learning = states, learning

    def layer(self, virtual: int) -> LayerAdapters:
        """See :class:`~golf_lightning.model.injection.Adapters`."""
        adapters = {}
        for name, group in self._groups.items():
            last = virtual == group.depth - 1 and name != "qkv"
            if name != "head":
                adapters[name] = self._adapt(name, virtual, self._head_rows if last else self._rows)
        return LayerAdapters(**adapters)

    def head(self, logits_TV: Tensor, x_TD: Tensor) -> Tensor:
        """See :class:`~golf_lightning.model.injection.Adapters`."""
        return self._adapt("head", 0, self._head_rows)(logits_TV, x_TD, None) if "head" in self._groups else logits_TV

    def _adapt(self, name: str, virtual: int, rows: RowSlots) -> Adapt:
        a_PRD, b_POr = self._values[f"{name}.a"][virtual], self._values[f"{name}.b"][virtual]
        learner: Learner | None = None
        if self._states is not None and self._learning is not None:
            a, b = (self._states[f"{name}.{part}"][virtual] for part in "ab")
            learner = Learner(a, b, self._learning)

        def adapt(base_TO: Tensor, x_TD: Tensor, scale_O: Tensor | None) -> Tensor:
            return low_rank(
                base_TO, x_TD, a_PRD, b_POr, rows, self._groups[name].columns,
                alpha=self._scale, scale_O=scale_O, learner=learner, backend=self._backend,
            )  # fmt: skip

        return adapt


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
