"""Entropy coders, chosen by name."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import brotli
import numpy as np

from golf_lightning.compression.bounded import brotli_decompress
from golf_lightning.compression.coder import ITEM_BYTES
from golf_lightning.compression.coder import Array as Array
from golf_lightning.compression.coder import ArraySpec as ArraySpec
from golf_lightning.compression.coder import Coder as Coder
from golf_lightning.compression.rans import RansCoder
from golf_lightning.errors import GolfError

CoderName = Literal["rans", "brotli", "raw"]


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
        shuffled = brotli_decompress(data, wanted)
        return RawCoder().decode(_unshuffle(shuffled, ITEM_BYTES[specs[0].dtype]), specs)


def coder_named(name: str) -> Coder:
    """The coder of that name.

    Raises:
        GolfError: there is none.
    """
    if name == "rans":
        return RansCoder()
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
