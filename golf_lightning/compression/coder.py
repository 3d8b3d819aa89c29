"""The interface of an entropy coder.

A coder turns the arrays of one section (all int8 codes, or all float16 values) into bytes and back. It sees arrays with
their shapes, not a run of bytes, so that it may have a model per row or column.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]
Stored = Literal["int8", "float16"]

ITEM_BYTES: dict[Stored, int] = {"int8": 1, "float16": 2}


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Type and shape of one array, all that a decoder is told about it."""

    dtype: Stored
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded array."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Coder(Protocol):
    """What an entropy coder must do."""

    def encode(self, arrays: Sequence[Array]) -> bytes:
        """Code the arrays of one section; all have one dtype. The same arrays always give the same bytes."""
        ...

    def decode(self, data: bytes, specs: Sequence[ArraySpec]) -> list[Array]:
        """The arrays again.

        Never allocates much beyond the bytes that ``specs`` declare, whatever ``data`` holds.

        Raises:
            GolfError: ``data`` is damaged or does not decode to exactly these arrays.
        """
        ...
