"""Trellis-coded levels: which integers a code may take depends on the codes above it in the same column.

Two quantizers share one step. Quantizer 0 has the even levels, quantizer 1 the odd ones and zero. A machine of 8 states
walks down a column, restarts every ``RESTART`` rows and says which quantizer comes next; what drives it is the parity
of the last *index*, the number of a level within its quantizer. So each weight pays for the coarse step of one
quantizer while a search over all paths (:mod:`golf_lightning.compression.search`) finds levels nearly as close as
those of the fine one. Trellis-coded quantization is Marcellin and Fischer's (1990); its entropy-coded form with a zero
in both quantizers is that of JPEG 2000 and VVC; the machine is Ungerboeck's 8-state code (1982), polynomials 13 and 04.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

# M matrices, R rows, C columns; L rows between restarts, G groups of L rows

STATES = 8
RESTART = 128
"""Rows after which the machine starts again at state 0."""

Codes = npt.NDArray[np.int8]
Bits = npt.NDArray[np.uint8]
Integers = npt.NDArray[Any]


def _next_states(feedback: int = 0o13, forward: int = 0o4) -> npt.NDArray[np.uint8]:
    """State after each ``2 * state + parity``, from the code's parity-check polynomials (feedback and forward taps)."""
    table = np.zeros(2 * STATES, np.uint8)
    registers = STATES.bit_length() - 1
    for state in range(STATES):
        quantizer = state & 1
        for parity in (0, 1):
            # The subset of a level's union code: bit 0 is its quantizer, bit 1 drives the machine.
            bit = parity ^ quantizer
            for i in range(registers):
                tap = i + 1
                new = (state >> tap) & 1 ^ ((feedback >> tap) & quantizer) & 1 ^ ((forward >> tap) & bit) & 1
                table[2 * state + parity] |= new << i
    return table


NEXT_STATE = _next_states()
"""``[2 * STATES]`` uint8: the next state at ``2 * state + parity of the index``. The lowest bit of a state is its
quantizer."""


def quantizers(parity_MRC: Bits) -> Bits:
    """The quantizer, 0 or 1, of every index, from the parities of all indices."""
    parity = _grouped(parity_MRC)
    out = np.empty_like(parity)
    state = np.zeros((*parity.shape[:2], parity.shape[3]), np.uint8)
    for row in range(parity.shape[2]):
        out[:, :, row] = state & 1
        state = NEXT_STATE[2 * state + parity[:, :, row]]
    return _ungrouped(out, parity_MRC.shape[1])


def to_indices(levels_MRC: Codes) -> tuple[Codes, Bits] | None:
    """Indices and quantizers of levels, or ``None`` where these levels are no path of the trellis."""
    levels = _grouped(levels_MRC)
    magnitude = np.abs(levels.astype(np.int16))
    quantizer = np.empty(levels.shape, np.uint8)
    state = np.zeros((*levels.shape[:2], levels.shape[3]), np.uint8)
    for row in range(levels.shape[2]):
        q = state & 1
        quantizer[:, :, row] = q
        row_magnitude = magnitude[:, :, row]
        if (((row_magnitude & 1) != q) & ((row_magnitude != 0) | (q == 0))).any():
            return None
        state = NEXT_STATE[2 * state + ((row_magnitude + q >> 1) & 1).astype(np.uint8)]
    below = _ungrouped(quantizer, levels_MRC.shape[1])
    wide = levels_MRC.astype(np.int16)
    index = np.sign(wide) * (np.abs(wide) + below >> 1)
    return index.astype(np.int8), below


def to_levels(index_MRC: Integers, quantizer_MRC: Bits) -> Integers:
    """Levels of indices under their quantizers."""
    return 2 * index_MRC - np.sign(index_MRC) * quantizer_MRC


def _grouped(values_MRC: Integers) -> Integers:
    """``[M, G, L, C]``, the last group filled up with zeros."""
    matrices, rows, columns = values_MRC.shape
    length = min(rows, RESTART)
    groups = -(-rows // length) if rows else 0
    padded = np.zeros((matrices, groups * length, columns), values_MRC.dtype)
    padded[:, :rows] = values_MRC
    return padded.reshape(matrices, groups, length, columns)


def _ungrouped(values_MGLC: Integers, rows: int) -> Integers:
    matrices, groups, length, columns = values_MGLC.shape
    return np.ascontiguousarray(values_MGLC.reshape(matrices, groups * length, columns)[:, :rows])
