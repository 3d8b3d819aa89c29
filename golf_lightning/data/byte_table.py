"""How many bytes of text each token stands for: the denominator of bits per byte.

Control, unknown and unused pieces stand for 0 bytes, byte-fallback pieces for 1, and every other piece for the UTF-8
length of its text without the leading space mark, plus 1 for that mark unless the previous token is a control, unknown
or unused piece. This is the convention of the contest's own evaluation.

Shapes: V vocabulary, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from golf_lightning.data.tokenizer import SPACE_MARK, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

Ids = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class ByteTable:
    """Bytes per piece of one tokenizer.

    Attributes:
        bytes_of: ``[V]`` int16, UTF-8 bytes of the piece without its leading space mark.
        leading_space: ``[V]`` bool, the piece begins with the space mark.
        control: ``[V]`` bool, the piece is control, unknown or unused; it stands for no text.
    """

    bytes_of: npt.NDArray[np.int16]
    leading_space: npt.NDArray[np.bool_]
    control: npt.NDArray[np.bool_]

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> ByteTable:
        """Read the table off a tokenizer's pieces."""
        pieces = tokenizer.processor
        size = tokenizer.vocab_size
        bytes_of = np.zeros(size, dtype=np.int16)
        leading_space = np.zeros(size, dtype=np.bool_)
        control = np.zeros(size, dtype=np.bool_)
        for index in range(size):
            if pieces.is_control(index) or pieces.is_unknown(index) or pieces.is_unused(index):
                control[index] = True
            elif pieces.is_byte(index):
                bytes_of[index] = 1
            else:
                piece = pieces.id_to_piece(index)
                leading_space[index] = piece.startswith(SPACE_MARK)
                # a mark further inside is a space of the text as well, one byte and not the mark's three
                bytes_of[index] = len(piece.removeprefix(SPACE_MARK).replace(SPACE_MARK, " ").encode("utf-8"))
        return cls(bytes_of, leading_space, control)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return len(self.bytes_of)

    def count(self, previous: Ids, targets: Ids) -> npt.NDArray[np.int64]:
        """Bytes of each target, ``[N]`` int64.

        Args:
            previous: ``[N]`` the token before each target.
            targets: ``[N]`` the scored tokens.
        """
        spaces = self.leading_space[targets] & ~self.control[previous]
        return self.bytes_of[targets].astype(np.int64) + spaces

    def total(self, tokens: Ids, previous: int | None = None) -> int:
        """Bytes of a run of tokens, ``[N]``.

        Args:
            tokens: the run.
            previous: the token before the run; without one its first token counts as the start of a text.
        """
        if not len(tokens):
            return 0
        total = int(self.bytes_of[tokens].sum(dtype=np.int64))
        total += int((self.leading_space[tokens[1:]] & ~self.control[tokens[:-1]]).sum())
        return total + int(previous is not None and self.leading_space[tokens[0]] and not self.control[previous])

    def as_tensors(self) -> dict[str, Tensor]:
        """``bytes_of`` (int16), ``leading_space`` and ``control`` (bool) as tensors ``[V]``, for a metric's buffers."""
        import torch  # here, so that the processes that prepare text start without it

        return {
            "bytes_of": torch.from_numpy(self.bytes_of.copy()),
            "leading_space": torch.from_numpy(self.leading_space.copy()),
            "control": torch.from_numpy(self.control.copy()),
        }
