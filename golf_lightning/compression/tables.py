"""Integer frequency tables for entropy coding, stored in a byte a symbol, and the models made of them.

A table of a zero-mean, symmetric distribution: how often each magnitude occurred. Frequencies are rounded to eighths of
an octave, which costs less than a thousandth of a bit. They are integers and powers of two times integers, exact in
float64, so every machine makes the same model of them.
"""

import constriction
import numpy as np
import numpy.typing as npt

from golf_lightning.compression.side import SideReader, SideWriter
from golf_lightning.errors import GolfError

_EIGHTHS = np.array([64, 70, 76, 83, 91, 99, 108, 117], np.int64)
_GRID = np.concatenate([[0], ((_EIGHTHS[None, :] << np.arange(26)[:, None]) >> 6).ravel()])
"""Frequency of each stored byte: 0, then 1 to 2**26 in steps of about 2**(1/8)."""


class Table:
    """Frequencies of the integers ``first, first + stride, ...``.

    Args:
        counts: ``[K]`` how often magnitude ``start + i * stride`` occurred, both signs together.
        start: the smallest magnitude; 0 or 1.
        stride: 1, or 2 where only even or only odd integers occur.
        signed: whether negative integers occur, as often as positive ones.
    """

    def __init__(self, counts: npt.NDArray[np.int64], *, start: int = 0, stride: int = 1, signed: bool = True) -> None:
        counts = np.trim_zeros(counts, "b")
        # The nearest entry from below, but never 0 for what occurred.
        self.stored = np.searchsorted(_GRID, counts, side="right") - 1
        self.stored[counts == 0] = 0
        self.start, self.stride, self.signed = start, stride, signed
        self.model = self._model()

    def _model(self) -> "constriction.stream.model.Categorical | None":
        """The model of positions ``(integer - first) / stride``; ``None`` where only one integer is possible."""
        weights = self.weights
        if len(weights) < 2:
            return None
        return constriction.stream.model.Categorical(weights, lazy=False, perfect=False)

    @property
    def empty(self) -> bool:
        """Whether nothing is coded with it."""
        return not len(self.stored)

    @property
    def largest(self) -> int:
        """The largest integer."""
        return self.start + self.stride * (len(self.stored) - 1)

    @property
    def first(self) -> int:
        """The smallest integer."""
        return -self.largest if self.signed else self.start

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Frequencies of all integers from the smallest to the largest."""
        half = _GRID[self.stored]
        if not self.signed:
            weights = half
        elif self.start == 0:
            weights = np.concatenate([half[:0:-1], 2 * half[:1], half[1:]])
        else:
            weights = np.concatenate([half[::-1], half])
        return weights.astype(np.float64)

    def write(self, side: SideWriter) -> None:
        """Store the table."""
        side.put(len(self.stored), "<u2")
        side.put(self.stored, "u1")

    @classmethod
    def read(cls, side: SideReader, largest: int, *, start: int = 0, stride: int = 1, signed: bool = True) -> "Table":
        """Load a table of integers up to ``largest``.

        Raises:
            GolfError: it is damaged.
        """
        stored = side.take(side.one("<u2"), "u1")
        if len(stored) and (start + stride * (len(stored) - 1) > largest or (stored >= len(_GRID)).any()):
            raise GolfError("a coded section is damaged: a table makes no sense.")
        table = cls(_GRID[stored], start=start, stride=stride, signed=signed)
        if len(table.stored) != len(stored):
            raise GolfError("a coded section is damaged: a table ends in nothing.")
        return table
