"""Facade of what lies between a layer's products: weighted sums of residual streams, and the norms that products read.

Skip gates, lanes, residual mixes and norms are all sums of streams with one weight a column. The fused path takes
everything wanted at one place in one pass: each stream is read once, forward and backward, and the gradients of the
weights are summed over tokens while the rows are at hand.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.kernels.backend import KernelBackend
from golf_lightning.kernels.heads import NORM_EPS
from golf_lightning.kernels.joining import MOST_TERMS, join
from golf_lightning.kernels.mixing_ops import Plan, fused_mix, wide

# T tokens, D width, N weights, P parts of a sum


@dataclass(frozen=True, slots=True)
class Blend:
    """A weighted sum of streams that is not computed yet.

    Args:
        terms: pairs of a weight, ``[D]``, scalar or number, and a stream ``[T, D]`` or another blend.
    """

    terms: "tuple[tuple[Tensor | float, Stream], ...]"


Stream = Tensor | Blend


class Wanted(NamedTuple):
    """What to make of a stream.

    Attributes:
        stream: the stream.
        written: whether its values are wanted.
        scale: its root-mean-square norm times this is wanted; 0 for none.
        readers: how often the norm is given, once for each place that reads it.
    """

    stream: Stream
    written: bool
    scale: float = 0.0
    readers: int = 1


def mix(
    wanted: Sequence[Wanted],
    *,
    again_TD: Tensor | None = None,
    backend: KernelBackend = "reference",
    frozen: bool = False,
) -> list[Tensor]:
    """Values and norms, as far as asked for, of each wanted stream in order, ``[T, D]`` each.

    A blend that was wanted before may appear in later ones; it is computed once.

    Args:
        wanted: what to make of which streams.
        again_TD: one of the streams, which is also needed elsewhere; the last result is what to use there. The fused
            path then adds its two gradients where it has one at hand.
        backend: ``reference`` or ``triton``.
        frozen: no weight asks for a gradient. The fused path then takes each sum by itself, without compilation, and
            adds what the readers of a norm give back where it has it at hand.
    """
    if backend == "triton" and not frozen:
        return _fused(wanted, again_TD)
    return (_joined(wanted) if frozen else _plain(wanted)) + ([] if again_TD is None else [again_TD])


def norm(x_TD: Tensor, scale: float) -> Tensor:
    """``scale`` times the root-mean-square norm of each row."""
    return F.rms_norm(x_TD, x_TD.shape[-1:], eps=NORM_EPS) * scale


def _plain(wanted: Sequence[Wanted]) -> list[Tensor]:
    done: list[tuple[Stream, Tensor]] = []
    results = []
    for stream, written, scale, readers in wanted:
        x_TD = _evaluate(stream, done)
        done.append((stream, x_TD))
        results += [x_TD] * written
        if scale:
            results += [norm(x_TD, scale)] * readers
    return results


def _evaluate(stream: Stream, done: list[tuple[Stream, Tensor]]) -> Tensor:
    for known, x_TD in done:
        if known is stream:
            return x_TD
    if isinstance(stream, Tensor):
        return stream
    parts = [_weighted(weight, _evaluate(x, done)) for weight, x in stream.terms]
    return functools.reduce(torch.add, parts)


def _weighted(weight: Tensor | float, x_TD: Tensor) -> Tensor:
    return x_TD if _is_one(weight) else x_TD * weight


def _joined(wanted: Sequence[Wanted]) -> list[Tensor]:
    sums: list[Stream] = []
    values: list[Tensor] = []
    results: list[Tensor] = []
    for stream, written, scale, readers in wanted:
        if isinstance(stream, Blend) or scale:
            x_TD, *norms = _join(stream, sums, values, scale, readers if scale else 0)
            sums.append(stream)
            values.append(x_TD)
        else:
            x_TD, norms = stream, []
        results += [x_TD] * written + norms
    return results


def _join(stream: Stream, sums: list[Stream], values: list[Tensor], scale: float, readers: int) -> tuple[Tensor, ...]:
    """A stream as one sum of as many terms as the kernel takes; blends inside it as sums of their own if need be."""
    terms = _flatten(stream, sums) if isinstance(stream, Blend) else [(1.0, stream)]
    if len(terms) > MOST_TERMS:
        assert isinstance(stream, Blend)
        done = [isinstance(x, Tensor) or _place(sums, x) >= 0 for _, x in stream.terms]
        terms = [
            (weight, x if known else _join(x, sums, values, 0.0, 0)[0])
            for (weight, x), known in zip(stream.terms, done, strict=True)
        ]
    streams = [x if isinstance(x, Tensor) else values[_place(sums, x)] for _, x in terms]
    plain = all(_is_one(weight) for weight, _ in terms)
    weights = None
    if not plain:
        width = streams[0].shape[1]
        weights = torch.stack([row.expand(width) for row in _rows([weight for weight, _ in terms], streams[0])])
    return join(streams, weights, scale=scale, readers=readers)


def _fused(wanted: Sequence[Wanted], again_TD: Tensor | None) -> list[Tensor]:
    # A tensor that is wanted as it is needs no sum.
    asked: list[Wanted] = []
    for w in wanted:
        asked += [Wanted(x, False) for x in _apart(w.stream) if _place([v.stream for v in asked], x) < 0]
        if isinstance(w.stream, Blend) or w.scale:
            asked.append(w)
    sums: list[Stream] = []
    flat: list[list[tuple[Tensor | float, Stream]]] = []
    streams: list[Tensor] = []
    for stream, *_ in asked:
        flat.append(_flatten(stream, sums) if isinstance(stream, Blend) else [(1.0, stream)])
        for _, x in flat[-1]:
            if isinstance(x, Tensor) and _place(streams, x) < 0:
                streams.append(x)
        sums.append(stream)
    weights: list[Tensor | float] = []
    uses: list[int] = []
    for terms in flat:
        values = [_place([*streams, *sums], x) for _, x in terms]
        for value in sorted(set(values)):
            # A stream that comes twice, as the embedding does in the first layer, is read once.
            same = [weight for (weight, _), known in zip(terms, values, strict=True) if known == value]
            weights.append(same[0] if len(same) == 1 else same[0] + same[1])
        uses.append(sum(1 << value for value in set(values)))
    weights_W, places, columns = _given(weights, streams[0])
    needed = tuple(w.written and isinstance(w.stream, Blend) for w in asked)
    plan = Plan(places, columns, tuple(uses), needed, tuple(w.scale for w in asked))
    again = -1 if again_TD is None else _place(streams, again_TD)
    found = list(fused_mix(weights_W, plan, again, streams))
    results: list[Tensor] = []
    for stream, written, scale, readers in wanted:
        if written:
            results.append(found.pop(0) if isinstance(stream, Blend) else stream)
        if scale:
            results += [found.pop(0)] * readers
    return results + found


def _apart(stream: Stream) -> Iterator[Stream]:
    """The blends inside of numbers alone, where taken apart each term would ask for a weight a column of its own."""
    for weight, x in stream.terms if isinstance(stream, Blend) else ():
        numbers = isinstance(x, Blend) and len(x.terms) > 1 and not any(_per_column(inner) for inner, _ in x.terms)
        yield from [x] if numbers and _per_column(weight) else _apart(x)


def _is_one(weight: Tensor | float) -> bool:
    return isinstance(weight, float) and weight == 1.0


def _per_column(weight: Tensor | float) -> bool:
    return isinstance(weight, Tensor) and weight.dim() > 0


def _given(weights: Sequence[Tensor | float], x_TD: Tensor) -> tuple[Tensor, tuple[int, ...], int]:
    """The weights in one row, the place of each there, and how many have a number a column; see :class:`Plan`."""
    order = [n for n, weight in enumerate(weights) if not _is_one(weight)]
    order.sort(key=lambda n: not _per_column(weights[n]))
    places = tuple(order.index(n) if n in order else -1 for n in range(len(weights)))
    # Each operation is traced once a layer: what changes nothing is left out.
    rows = [row if row.dim() else row[None] for row in _rows([weights[n] for n in order], x_TD)]
    return torch.cat(rows) if rows else x_TD.new_empty(0), places, sum(map(_per_column, weights))


def _rows(weights: Sequence[Tensor | float], x_TD: Tensor) -> list[Tensor]:
    dtypes = [weight.dtype for weight in weights if isinstance(weight, Tensor)]
    dtype = functools.reduce(torch.promote_types, dtypes, x_TD.dtype)
    tensors = [w if isinstance(w, Tensor) else x_TD.new_full((), w, dtype=dtype) for w in weights]
    return [w if w.dtype == dtype else w.to(dtype) for w in tensors]


def _flatten(blend: Blend, sums: list[Stream]) -> list[tuple[Tensor | float, Stream]]:
    """The terms with blends inside taken apart, except those that are computed anyway."""
    terms: list[tuple[Tensor | float, Stream]] = []
    for weight, x in blend.terms:
        if isinstance(x, Tensor) or _place(sums, x) >= 0:
            terms.append((weight, x))
        else:
            inner = _flatten(x, sums)
            terms += [(_product(weight, w), y) for w, y in inner]
    return terms


def _place(values: Sequence[Stream], x: Stream) -> int:
    return next((place for place, value in enumerate(values) if value is x), -1)


def _product(outer: Tensor | float, inner: Tensor | float) -> Tensor | float:
    return (wide(outer) if isinstance(outer, Tensor) else outer) * inner
