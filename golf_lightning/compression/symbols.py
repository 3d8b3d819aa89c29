"""The two ends of a coded section: symbols go into one ANS coder, small numbers beside it, raw bits between.

Layout: bytes of the side information before and after compression and bytes of raw bits (three unsigned 32-bit
integers), the side information under brotli, the raw bits, and the words of the coder; all little-endian. The coder is
that of the package ``constriction`` (asymmetric numeral systems, Duda 2013).
"""

import struct

import brotli
import constriction
import numpy as np
import numpy.typing as npt

from golf_lightning.compression.bounded import brotli_decompress
from golf_lightning.compression.side import SideReader, SideWriter
from golf_lightning.compression.tables import Model
from golf_lightning.errors import GolfError

PREFIX = struct.Struct("<III")


class Encoder:
    """Collects symbols in the order in which they will be decoded."""

    def __init__(self) -> None:
        self.side = SideWriter()
        self.raw: list[bytes] = []
        self._jobs: list[tuple[npt.NDArray[np.int32], constriction.stream.model.Categorical]] = []

    def put(self, values: npt.NDArray[np.integer], model: Model) -> None:
        """Code integers."""
        if model.coder is not None and values.size:
            self._jobs.append(((values.astype(np.int32) - model.first) // model.stride, model.coder))

    def put_bits(self, bits: npt.NDArray[np.uint8]) -> None:
        """Store bits as they are, from the next byte on."""
        self.raw.append(np.packbits(bits).tobytes())

    def to_bytes(self) -> bytes:
        """The section."""
        ans = constriction.stream.stack.AnsCoder()
        for positions, model in reversed(self._jobs):
            ans.encode_reverse(positions, model)
        side, raw = self.side.to_bytes(), b"".join(self.raw)
        packed = brotli.compress(side, quality=11, lgwin=24)
        words = ans.get_compressed().astype("<u4").tobytes()
        return PREFIX.pack(len(side), len(packed), len(raw)) + packed + raw + words


class Decoder:
    """Gives back what an :class:`Encoder` took, in the same order.

    Raises:
        GolfError: the section is damaged, or its side information is larger than ``side_limit`` bytes.
    """

    def __init__(self, data: bytes, side_limit: int) -> None:
        if len(data) < PREFIX.size:
            raise GolfError("a coded section ends too early.")
        size, packed, raw = PREFIX.unpack_from(data)
        words = PREFIX.size + packed + raw
        if size > side_limit or words > len(data) or (len(data) - words) % 4:
            raise GolfError("a coded section is damaged: its parts do not fit.")
        self.side = SideReader(brotli_decompress(data[PREFIX.size : PREFIX.size + packed], size))
        self._raw = data[PREFIX.size + packed : words]
        compressed = np.frombuffer(data, "<u4", offset=words).astype(np.uint32)
        if len(compressed) and not compressed[-1]:
            raise GolfError("a coded section is damaged: it ends in a zero word.")
        self._ans = constriction.stream.stack.AnsCoder(compressed)

    def take(self, count: int, model: Model) -> npt.NDArray[np.int32]:
        """The next ``count`` integers."""
        if count and not model.count:
            raise GolfError("a coded section is damaged: a table is missing.")
        if model.coder is None or not count:
            return np.full(count, model.first, np.int32)
        return self._ans.decode(model.coder, count) * model.stride + model.first

    def take_bits(self, count: int) -> npt.NDArray[np.uint8]:
        """The next ``count`` raw bits; every call starts at a byte."""
        wanted = -(-count // 8)
        if wanted > len(self._raw):
            raise GolfError("a coded section is damaged: its raw bits end too early.")
        bits = np.unpackbits(np.frombuffer(self._raw, np.uint8, wanted), count=count)
        self._raw = self._raw[wanted:]
        return bits

    def end(self) -> None:
        """Check that everything was used.

        Raises:
            GolfError: something is left.
        """
        self.side.end()
        if self._raw or not self._ans.is_empty():
            raise GolfError("a coded section is damaged: it holds more than the arrays declared.")
