"""Entropy coding with a model for every row and column, and knowledge of the trellis.

A code's spread is that of its row times that of its column, both rounded to eighths of an octave, so that the sum of
two small integers names one of a few dozen classes (:mod:`golf_lightning.compression.spreads`). Each class has a table
of frequencies of its own, taken from the codes themselves. Levels that follow the trellis are coded as indices: first
their parities, which tell the quantizer of every index, then the rest, with a table for each class, quantizer and
parity. All that a decoder computes is integer arithmetic, so it gives the same bits on every machine.

Side information of an array of codes, unless it is empty: whether it follows the trellis (u1); the spreads; with a
trellis, one byte a class, 256 times the probability of an odd index, 128 meaning that parities are stored as raw bits;
one table a class, or four, for (quantizer, parity) (0, 0), (0, 1), (1, 0) and (1, 1). Symbols run through the matrices,
and inside one through the blocks of equal row and column spread. Of an array of float16: the number of distinct values
(u2), these values as sorted 16-bit words and the table of their positions, or 0, the table of the high bytes, and all
low bytes raw.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from golf_lightning.compression.coder import Array, ArraySpec
from golf_lightning.compression.spreads import Spreads, measure_spreads, read_spreads
from golf_lightning.compression.symbols import Decoder, Encoder
from golf_lightning.compression.tables import Table
from golf_lightning.compression.trellis import quantizers, to_indices, to_levels
from golf_lightning.errors import GolfError

# M matrices, R rows, C columns

EVEN_ODDS = 128
CONTEXTS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Quantizer and parity of an index on the trellis."""
Codes = npt.NDArray[np.int8]


class RansCoder:
    """See the module. Encodes about 10 and decodes about 25 million codes a second."""

    def encode(self, arrays: Sequence[Array]) -> bytes:
        """Code the arrays of one section."""
        encoder = Encoder()
        for array in arrays:
            if array.size and array.dtype == np.int8:
                _put_codes(encoder, _matrices(array))
            elif array.size:
                _put_halves(encoder, array.ravel())
        return encoder.to_bytes()

    def decode(self, data: bytes, specs: Sequence[ArraySpec]) -> list[Array]:
        """The arrays again.

        Raises:
            GolfError: see :class:`~golf_lightning.compression.coder.Coder`.
        """
        # Tables, spreads and values are fewer than the codes, but for tiny arrays and a fixed number of tables.
        decoder = Decoder(data, side_limit=sum(2 * spec.nbytes + 2**18 for spec in specs))
        arrays: list[Array] = []
        for spec in specs:
            if not spec.nbytes:
                array: Array = np.zeros(spec.shape, spec.dtype)
            elif spec.dtype == "int8":
                array = _take_codes(decoder, _matrices_shape(spec.shape)).reshape(spec.shape)
            else:
                array = _take_halves(decoder, spec.nbytes // 2).reshape(spec.shape)
            arrays.append(array)
        decoder.end()
        return arrays


def _matrices_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    rows, columns = (1, 1, *shape)[-2:]
    return int(np.prod(shape[:-2], dtype=np.int64)), rows, columns


def _matrices(array: Array) -> Codes:
    return np.ascontiguousarray(array).reshape(_matrices_shape(array.shape))


def _put_codes(encoder: Encoder, codes_MRC: Codes) -> None:
    found = to_indices(codes_MRC)
    index_MRC, context_MRC = (codes_MRC, np.zeros(codes_MRC.shape, np.uint8)) if found is None else found
    spreads = measure_spreads(index_MRC)
    encoder.side.put(int(found is not None), "u1")
    spreads.write(encoder.side)
    if found is not None:
        parity_MRC = (index_MRC & 1).view(np.uint8)
        _put_parities(encoder, parity_MRC, spreads)
        context_MRC = 2 * context_MRC + parity_MRC
    contexts = 1 if found is None else len(CONTEXTS)
    counts = _count(index_MRC, context_MRC, spreads, contexts)
    tables = [
        [_table_of(counts[class_, context], context, contexts) for context in range(contexts)]
        for class_ in range(spreads.classes)
    ]
    for table in (table for row in tables for table in row):
        table.write(encoder.side)
    for matrix in range(len(codes_MRC)):
        for class_, rows, columns in spreads.blocks(matrix):
            values, context = index_MRC[matrix][rows, columns], context_MRC[matrix][rows, columns]
            for which in range(contexts):
                encoder.put(values[context == which] if contexts > 1 else values.ravel(), tables[class_][which])


def _take_codes(decoder: Decoder, shape: tuple[int, int, int]) -> Codes:
    on_trellis = decoder.side.one("u1")
    spreads = read_spreads(decoder.side, shape)
    context_MRC = quantizer_MRC = np.zeros(shape, np.uint8)
    if on_trellis:
        parity_MRC = _take_parities(decoder, shape, spreads)
        quantizer_MRC = quantizers(parity_MRC)
        context_MRC = 2 * quantizer_MRC + parity_MRC
    contexts = len(CONTEXTS) if on_trellis else 1
    tables = [[_read_table(decoder, context, contexts) for context in range(contexts)] for _ in range(spreads.classes)]
    codes_MRC = np.empty(shape, np.int8)
    for matrix in range(shape[0]):
        for class_, rows, columns in spreads.blocks(matrix):
            context = context_MRC[matrix][rows, columns]
            values = np.empty(context.shape, np.int32)
            for which in range(contexts):
                where = context == which
                values[where] = decoder.take(int(where.sum()), tables[class_][which])
            if on_trellis:
                values = to_levels(values, quantizer_MRC[matrix][rows, columns])
            if values.size and not -128 <= values.min() <= values.max() <= 127:
                raise GolfError("a coded section is damaged: a code exceeds 8 bits.")
            codes_MRC[matrix][rows, columns] = values
    return codes_MRC


def _count(index_MRC: Codes, context_MRC: npt.NDArray[np.uint8], spreads: Spreads, contexts: int) -> Array:
    """How often each magnitude occurs, ``[classes, contexts, 129]``."""
    counts = np.zeros(spreads.classes * contexts * 129, np.int64)
    for matrix, index_RC in enumerate(index_MRC):
        magnitude = np.abs(index_RC.astype(np.int64))
        which = (spreads.class_map(matrix) * contexts + context_MRC[matrix]) * 129 + magnitude
        counts += np.bincount(which.ravel(), minlength=len(counts))
    return counts.reshape(spreads.classes, contexts, 129)


def _table_of(counts: npt.NDArray[np.int64], context: int, contexts: int) -> Table:
    parity = CONTEXTS[context][1]
    return Table(counts) if contexts == 1 else Table(counts[parity::2], start=parity, stride=2)


def _read_table(decoder: Decoder, context: int, contexts: int) -> Table:
    if contexts == 1:
        return Table.read(decoder.side, 128)
    return Table.read(decoder.side, 128, start=CONTEXTS[context][1], stride=2)


def _odds_table(odds: int) -> Table:
    return Table(np.array([256 - odds, odds]), signed=False)


def _put_parities(encoder: Encoder, parity_MRC: npt.NDArray[np.uint8], spreads: Spreads) -> None:
    counts = _count(np.zeros_like(parity_MRC, np.int8), parity_MRC, spreads, 2)[:, :, 0]
    odds = np.rint(256 * counts[:, 1] / np.maximum(counts.sum(1), 1)).astype(np.int64).clip(1, 255)
    encoder.side.put(odds, "u1")
    for matrix, parity_RC in enumerate(parity_MRC):
        encoder.put_bits(parity_RC[odds[spreads.class_map(matrix)] == EVEN_ODDS])
        for class_, rows, columns in spreads.blocks(matrix):
            if odds[class_] != EVEN_ODDS:
                encoder.put(parity_RC[rows, columns].ravel(), _odds_table(int(odds[class_])))


def _take_parities(decoder: Decoder, shape: tuple[int, int, int], spreads: Spreads) -> npt.NDArray[np.uint8]:
    odds = decoder.side.take(spreads.classes, "u1")
    parity_MRC = np.zeros(shape, np.uint8)
    for matrix, parity_RC in enumerate(parity_MRC):
        raw_RC = odds[spreads.class_map(matrix)] == EVEN_ODDS
        parity_RC[raw_RC] = decoder.take_bits(int(raw_RC.sum()))
        for class_, rows, columns in spreads.blocks(matrix):
            if odds[class_] != EVEN_ODDS:
                taken = decoder.take(rows.size * columns.size, _odds_table(int(odds[class_])))
                parity_RC[rows, columns] = taken.reshape(rows.size, columns.size)
    return parity_MRC


def _put_halves(encoder: Encoder, values: Array) -> None:
    words = values.astype("<f2").view("<u2")
    distinct, positions = np.unique(words, return_inverse=True)
    # A list of values pays where each is used several times.
    listed = 4 * len(distinct) <= len(words) and len(distinct) < 2**16
    encoder.side.put(len(distinct) if listed else 0, "<u2")
    if listed:
        encoder.side.put(np.diff(distinct, prepend=distinct.dtype.type(0)), "<u2")
    else:
        positions = words >> 8
        encoder.put_bits(np.unpackbits((words & 255).astype(np.uint8)))
    table = Table(np.bincount(positions), signed=False)
    table.write(encoder.side)
    encoder.put(positions, table)


def _take_halves(decoder: Decoder, count: int) -> Array:
    listed = decoder.side.one("<u2")
    distinct = decoder.side.take(listed, "<u2").cumsum()
    low = None if listed else np.packbits(decoder.take_bits(8 * count))
    table = Table.read(decoder.side, listed - 1 if listed else 255, signed=False)
    positions = decoder.take(count, table)
    words = distinct[positions] if low is None else 256 * positions + low
    return words.astype("<u2").view("<f2").astype(np.float16)
