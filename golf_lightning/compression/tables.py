"""Integer frequency tables for entropy coding, stored in a byte a symbol, and the models made of them.

A table says how often each magnitude occurred. Frequencies are rounded to eighths of
an octave, which costs less than a thousandth of a bit. They are integers and powers of two times integers, exact in
float64, so every machine makes the same model of them.
"""

from dataclasses import dataclass

import constriction
import numpy as np
import numpy.typing as npt

from golf_lightning.compression.side import SideReader, SideWriter
from golf_lightning.errors import GolfError

_EIGHTHS = np.array([64, 70, 76, 83, 91, 99, 108, 117], np.int64)
_GRID = np.concatenate([[0], ((_EIGHTHS[None, :] << np.arange(26)[:, None]) >> 6).ravel()])
"""Frequency of each stored byte: 0, then 1 to 2**26 in steps of about 2**(1/8)."""


@dataclass(frozen=True, slots=True)
class Model:
    """What codes the integers ``first, first + stride, ...``.

    Attributes:
        first: the smallest integer.
        stride: the distance between two.
        count: how many there are; with one, nothing needs coding, with none, nothing can be coded.
        coder: the model of positions ``(integer - first) / stride``, where there are at least two.
    """

    first: int
    stride: int
    count: int
    coder: "constriction.stream.model.Categorical | None"

    @classmethod
    def of(cls, weights: npt.NDArray[np.int64], first: int, stride: int = 1) -> "Model":
        """From frequencies. A position of frequency 0 gets the least probability, 2**-24."""
        coder = None
        if len(weights) > 1 and weights.any():
            coder = constriction.stream.model.Categorical(weights.astype(np.float64), lazy=False, perfect=False)
        return cls(first, stride, len(weights) if weights.any() else 0, coder)


class Table:
    """Frequencies of magnitudes ``start, start + stride, ...``, stored in a byte each.

    Args:
        counts: ``[K]`` how often each magnitude occurred, both signs together.
        start: the smallest magnitude; 0 or 1.
        stride: 1, or 2 where only even or only odd integers occur.
    """

    def __init__(self, counts: npt.NDArray[np.int64], *, start: int = 0, stride: int = 1) -> None:
        counts = np.trim_zeros(counts, "b")
        # The nearest entry from below, but never 0 for what occurred.
        self.stored = np.searchsorted(_GRID, counts, side="right") - 1
        self.stored[counts == 0] = 0
        self.start, self.stride = start, stride

    @property
    def largest(self) -> int:
        """The largest magnitude."""
        return self.start + self.stride * (len(self.stored) - 1)

    def unsigned(self) -> Model:
        """The model of integers that are never negative."""
        return Model.of(_GRID[self.stored], self.start, self.stride)

    def signed(self) -> Model:
        """The model of integers of both signs, alike in frequency."""
        return Model.of(self._both_signs(), -self.largest, self.stride)

    def remainder(self, subset: int) -> Model:
        """The model of integers of both signs that leave ``subset`` modulo 4; the stride must be 2."""
        skip = (subset + self.largest) % 4 // 2
        return Model.of(self._both_signs()[skip::2], -self.largest + 2 * skip, 4)

    def _both_signs(self) -> npt.NDArray[np.int64]:
        half = _GRID[self.stored]
        if self.start == 0:
            return np.concatenate([half[:0:-1], 2 * half[:1], half[1:]])
        return np.concatenate([half[::-1], half])

    def write(self, side: SideWriter) -> None:
        """Store the table."""
        side.put(len(self.stored), "<u2")
        side.put(self.stored, "u1")

    @classmethod
    def read(cls, side: SideReader, largest: int, *, start: int = 0, stride: int = 1) -> "Table":
        """Load a table of magnitudes up to ``largest``.

        Raises:
            GolfError: it is damaged.
        """
        stored = side.take(side.one("<u2"), "u1")
        if len(stored) and (start + stride * (len(stored) - 1) > largest or (stored >= len(_GRID)).any()):
            raise GolfError("a coded section is damaged: a table makes no sense.")
        table = cls(_GRID[stored], start=start, stride=stride)
        if len(table.stored) != len(stored):
            raise GolfError("a coded section is damaged: a table ends in nothing.")
        return table
