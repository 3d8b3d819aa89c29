"""Entropy coding with a model for every row and column, and knowledge of the trellis.

A code's spread is that of its row times that of its column, both rounded to eighths of an octave, so that the sum of
two small integers names one of a few dozen classes (:mod:`golf_lightning.compression.spreads`). Each class has a table
of frequencies of its own, taken from the codes themselves. Of levels on the trellis, bit 1 of all of them comes first:
that tells bit 0 of each, and then the level itself is coded among those of equal remainder modulo 4. All that a decoder
computes is integer arithmetic, so it gives the same bits on every machine.

Side information of an array of codes, unless it is empty: whether it follows the trellis (u1); the spreads; with a
trellis, one byte a class, 256 times the probability that bit 1 is set, 128 meaning that these bits are stored raw; one
table a class, or two, of even and of odd magnitudes. Symbols run through the matrices, and inside one through the
blocks of equal row and column spread. Of an array of float16: the number of distinct values (u2), these values as
sorted 16-bit words and the table of their positions; or 0, the table of the high bytes, and all low bytes raw.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from golf_lightning.compression.coder import Array, ArraySpec
from golf_lightning.compression.spreads import Spreads, measure_spreads, read_spreads
from golf_lightning.compression.symbols import Decoder, Encoder
from golf_lightning.compression.tables import Model, Table
from golf_lightning.compression.trellis import bit, low_bits, on_trellis
from golf_lightning.errors import GolfError

# M matrices, R rows, C columns

EVEN_ODDS = 128
Codes = npt.NDArray[np.int8]
Bits = npt.NDArray[np.uint8]


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
    trellis = on_trellis(codes_MRC)
    spreads = measure_spreads(codes_MRC)
    encoder.side.put(int(trellis), "u1")
    spreads.write(encoder.side)
    if trellis:
        _put_drive(encoder, bit(codes_MRC, 1), spreads)
    tables = _tables(_count(np.abs(codes_MRC.astype(np.int16)), spreads, 129), trellis)
    for table in (table for row in tables for table in row):
        table.write(encoder.side)
    models = _models(tables)
    for matrix, codes_RC in enumerate(codes_MRC):
        for class_, rows, columns in spreads.blocks(matrix):
            values = codes_RC[rows, columns]
            for subset, model in enumerate(models[class_]):
                encoder.put(values[values & 3 == subset] if trellis else values.ravel(), model)


def _take_codes(decoder: Decoder, shape: tuple[int, int, int]) -> Codes:
    trellis = decoder.side.one("u1")
    spreads = read_spreads(decoder.side, shape)
    subset_MRC = np.zeros(shape, np.uint8)
    if trellis:
        drive_MRC = _take_drive(decoder, shape, spreads)
        subset_MRC = 2 * drive_MRC + low_bits(drive_MRC)
    kinds: tuple[dict[str, int], ...] = ({"start": 0, "stride": 2}, {"start": 1, "stride": 2}) if trellis else ({},)
    tables = [[Table.read(decoder.side, 128, **kind) for kind in kinds] for _ in range(spreads.classes)]
    models = _models(tables)
    codes_MRC = np.empty(shape, np.int8)
    for matrix, codes_RC in enumerate(codes_MRC):
        for class_, rows, columns in spreads.blocks(matrix):
            block = subset_MRC[matrix][rows, columns]
            values = np.empty(block.shape, np.int32)
            for subset, model in enumerate(models[class_]):
                where = block == subset
                values[where] = decoder.take(int(where.sum()), model)
            if values.size and not -128 <= values.min() <= values.max() <= 127:
                raise GolfError("a coded section is damaged: a code exceeds 8 bits.")
            codes_RC[rows, columns] = values
    return codes_MRC


def _count(values_MRC: npt.NDArray[np.integer], spreads: Spreads, values: int) -> npt.NDArray[np.int64]:
    """How often each of ``values`` integers occurs in each class, ``[classes, values]``."""
    counts = np.zeros(spreads.classes * values, np.int64)
    for matrix, values_RC in enumerate(values_MRC):
        which = spreads.class_map(matrix) * values + values_RC
        counts += np.bincount(which.ravel(), minlength=len(counts))
    return counts.reshape(spreads.classes, values)


def _tables(counts: npt.NDArray[np.int64], trellis: bool) -> list[list[Table]]:
    """One table a class, or on the trellis one of even and one of odd magnitudes."""
    if not trellis:
        return [[Table(row)] for row in counts]
    return [[Table(row[start::2], start=start, stride=2) for start in (0, 1)] for row in counts]


def _models(tables: list[list[Table]]) -> list[list[Model]]:
    """Models by class; on the trellis, one for each remainder modulo 4."""
    return [
        [row[0].signed()] if len(row) == 1 else [row[subset & 1].remainder(subset) for subset in range(4)]
        for row in tables
    ]


def _odds_model(odds: int) -> Model:
    return Model.of(np.array([256 - odds, odds]), 0)


def _put_drive(encoder: Encoder, drive_MRC: Bits, spreads: Spreads) -> None:
    counts = _count(drive_MRC, spreads, 2)
    odds = np.rint(256 * counts[:, 1] / np.maximum(counts.sum(1), 1)).astype(np.int64).clip(1, 255)
    encoder.side.put(odds, "u1")
    for matrix, drive_RC in enumerate(drive_MRC):
        encoder.put_bits(drive_RC[odds[spreads.class_map(matrix)] == EVEN_ODDS])
        for class_, rows, columns in spreads.blocks(matrix):
            if odds[class_] != EVEN_ODDS:
                encoder.put(drive_RC[rows, columns].ravel(), _odds_model(int(odds[class_])))


def _take_drive(decoder: Decoder, shape: tuple[int, int, int], spreads: Spreads) -> Bits:
    odds = decoder.side.take(spreads.classes, "u1")
    drive_MRC = np.zeros(shape, np.uint8)
    for matrix, drive_RC in enumerate(drive_MRC):
        raw_RC = odds[spreads.class_map(matrix)] == EVEN_ODDS
        drive_RC[raw_RC] = decoder.take_bits(int(raw_RC.sum()))
        for class_, rows, columns in spreads.blocks(matrix):
            if odds[class_] != EVEN_ODDS:
                # A forged probability of 0 is no model: `take` refuses it.
                taken = decoder.take(rows.size * columns.size, _odds_model(int(odds[class_])))
                drive_RC[rows, columns] = taken.reshape(rows.size, columns.size)
    return drive_MRC


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
    table = Table(np.bincount(positions))
    table.write(encoder.side)
    encoder.put(positions, table.unsigned())


def _take_halves(decoder: Decoder, count: int) -> Array:
    listed = decoder.side.one("<u2")
    distinct = decoder.side.take(listed, "<u2").cumsum()
    low = None if listed else np.packbits(decoder.take_bits(8 * count))
    table = Table.read(decoder.side, listed - 1 if listed else 255)
    positions = decoder.take(count, table.unsigned())
    words = distinct[positions] if low is None else 256 * positions + low
    return words.astype("<u2").view("<f2").astype(np.float16)
