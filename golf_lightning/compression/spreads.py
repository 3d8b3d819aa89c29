"""How widely the codes of each row and of each column spread: which class of the entropy coder a code belongs to."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from golf_lightning.compression.side import SideReader, SideWriter

# M matrices, R rows, C columns

STEPS = 8
"""Classes in an octave of spread."""
SMALLEST = 2.0**-6
RARE = 5e-4
"""Fraction of the codes at either end that share a class with their neighbours, so that every table is well filled."""
Slices = tuple[int, npt.NDArray[np.intp], npt.NDArray[np.intp]]


@dataclass(slots=True)
class Spreads:
    """Spread of rows and columns in ``STEPS`` of an octave.

    Attributes:
        rows_MR: of each row.
        columns_MC: of each column, relative to the rows; a code's class is the sum of both.
        lowest: classes below count as this one.
        highest: classes above count as this one.
    """

    rows_MR: npt.NDArray[np.int64]
    columns_MC: npt.NDArray[np.int64]
    lowest: int
    highest: int

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.highest - self.lowest + 1

    def blocks(self, matrix: int) -> Iterator[Slices]:
        """Classes of a matrix, from 0, each with rows and columns that belong to it, as ``[r, 1]`` and ``[c]``."""
        rows, columns = self.rows_MR[matrix], self.columns_MC[matrix]
        row_groups = [(value, np.flatnonzero(rows == value)) for value in np.unique(rows)]
        column_groups = [(value, np.flatnonzero(columns == value)) for value in np.unique(columns)]
        for row, row_index in row_groups:
            for column, column_index in column_groups:
                class_ = min(max(int(row + column), self.lowest), self.highest) - self.lowest
                yield class_, row_index[:, None], column_index

    def class_map(self, matrix: int) -> npt.NDArray[np.int64]:
        """``[R, C]`` class of every code of a matrix, from 0."""
        total = self.rows_MR[matrix][:, None] + self.columns_MC[matrix]
        return total.clip(self.lowest, self.highest) - self.lowest

    def write(self, side: SideWriter) -> None:
        """Store them."""
        side.put([self.lowest, self.highest], "<i2")
        side.put(self.rows_MR, "i1")
        side.put(self.columns_MC, "i1")


def measure_spreads(values_MRC: npt.NDArray[np.int8]) -> Spreads:
    """Spreads of integers ``[M, R, C]``: root mean squares of rows and columns, fitted in turn to their products."""
    square = values_MRC.astype(np.float32) ** 2
    column = np.ones((square.shape[0], square.shape[2]), np.float32)
    for _ in range(4):
        row = np.maximum((square / column[:, None, :]).mean(2), SMALLEST**2)
        column = np.maximum((square / row[:, :, None]).mean(1), SMALLEST**2)
    rows, columns = (np.rint(STEPS / 2 * np.log2(x)).astype(np.int64).clip(-127, 127) for x in (row, column))
    counts = np.zeros(1024, np.int64)
    for matrix in range(len(rows)):
        counts += np.convolve(
            np.bincount(rows[matrix] + 256, minlength=513), np.bincount(columns[matrix] + 256, minlength=513)
        )[:1024]
    share = counts.cumsum() / counts.sum()
    lowest = int(np.searchsorted(share, RARE, side="right")) - 512
    highest = int(np.searchsorted(share, 1 - RARE)) - 512
    return Spreads(rows, columns, lowest, max(lowest, highest))


def read_spreads(side: SideReader, shape: tuple[int, int, int]) -> Spreads:
    """Load the spreads of integers of a shape ``[M, R, C]``.

    Raises:
        GolfError: they are damaged.
    """
    matrices, rows, columns = shape
    lowest, highest = side.take(2, "<i2").tolist()
    lowest, highest = max(lowest, -254), min(highest, 254)
    rows_MR = side.take(matrices * rows, "i1").reshape(matrices, rows)
    columns_MC = side.take(matrices * columns, "i1").reshape(matrices, columns)
    return Spreads(rows_MR, columns_MC, lowest, max(lowest, highest))
