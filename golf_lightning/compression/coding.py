"""Entropy coders behind one small interface, chosen by name.

A coder turns the arrays of one section (all int8 codes, or all float16 values) into bytes and back. It sees arrays with
their shapes, not a run of bytes, so a coder with a model per row or column fits the same two methods.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import brotli
import numpy as np
import numpy.typing as npt

from golf_lightning.errors import GolfError

Array = npt.NDArray[Any]
Stored = Literal["int8", "float16"]
CoderName = Literal["brotli", "raw"]

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


class RawCoder:
    """``raw``: little-endian bytes of one array after another; no coding, the yardstick of the others."""

    def encode(self, arrays: Sequence[Array]) -> bytes:
        """The arrays' bytes, one after another."""
        return b"".join(np.ascontiguousarray(array, _little_endian(array.dtype)).tobytes() for array in arrays)

    def decode(self, data: bytes, specs: Sequence[ArraySpec]) -> list[Array]:
        """Cut the bytes at the declared sizes."""
        wanted = sum(spec.nbytes for spec in specs)
        if len(data) != wanted:
            raise GolfError(f"a section decodes to {len(data)} bytes where {wanted} are declared.")
        arrays, start = [], 0
        for spec in specs:
            flat = np.frombuffer(data, _little_endian(np.dtype(spec.dtype)), math.prod(spec.shape), start)
            arrays.append(flat.astype(spec.dtype).reshape(spec.shape))
            start += spec.nbytes
        return arrays


class BrotliCoder:
    """``brotli``: what ``raw`` gives, as one Brotli stream (RFC 7932) at quality 11 with a 16 MiB window.

    This is the coding of the contest's records. Codes go in one byte each: bit packing would hide the bytes that
    repeat. Of a section of 16-bit values the low bytes of all arrays come first, then all high bytes, which hold sign
    and exponent and compress well.
    """

    quality = 11
    window_bits = 24

    def encode(self, arrays: Sequence[Array]) -> bytes:
        """Shuffle and compress; single-threaded, about 0.5 MB/s."""
        shuffled = _shuffle(RawCoder().encode(arrays), arrays[0].dtype.itemsize)
        return brotli.compress(shuffled, quality=self.quality, lgwin=self.window_bits)

    def decode(self, data: bytes, specs: Sequence[ArraySpec]) -> list[Array]:
        """Decompress, never beyond the declared size, and unshuffle."""
        wanted = sum(spec.nbytes for spec in specs)
        shuffled = _decompress(data, wanted)
        return RawCoder().decode(_unshuffle(shuffled, ITEM_BYTES[specs[0].dtype]), specs)


def coder_named(name: str) -> Coder:
    """The coder of that name.

    Raises:
        GolfError: there is none.
    """
    if name == "brotli":
        return BrotliCoder()
    if name == "raw":
        return RawCoder()
    raise GolfError(f"Coder {name!r} is unknown; this version knows {', '.join(get_args(CoderName))}.")


def _little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _shuffle(data: bytes, item: int) -> bytes:
    return np.frombuffer(data, np.uint8).reshape(-1, item).T.tobytes()


def _unshuffle(data: bytes, item: int) -> bytes:
    return np.frombuffer(data, np.uint8).reshape(item, -1).T.tobytes()


def _decompress(data: bytes, size: int) -> bytes:
    """Brotli's decompressor with a bound: it stops at the first output beyond ``size`` bytes."""
    decompressor = brotli.Decompressor()
    parts: list[bytes] = []
    total = 0
    try:
        feed = data
        while not decompressor.is_finished():
            part = decompressor.process(feed, output_buffer_limit=size - total + 1)
            feed = b""
            total += len(part)
            parts.append(part)
            if total > size:
                raise GolfError(f"a section decodes to more than the {size} bytes it declares.")
            if not part and decompressor.can_accept_more_data() and not decompressor.is_finished():
                raise GolfError("a compressed section ends too early.")
    except brotli.error:
        raise GolfError("a compressed section is damaged.") from None
    if total != size:
        raise GolfError(f"a section decodes to {total} bytes where {size} are declared.")
    return b"".join(parts)
