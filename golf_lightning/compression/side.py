"""What a coder stores beside its symbols: small numbers in a fixed order, compressed together."""

import numpy as np
import numpy.typing as npt

from golf_lightning.errors import GolfError


class SideWriter:
    """Collects numbers; every run of them has a length that the reader knows or reads first."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def put(self, values: npt.ArrayLike, dtype: str) -> None:
        """Append numbers of a little-endian dtype such as ``<i2``."""
        self._parts.append(np.asarray(values).astype(dtype).tobytes())

    def to_bytes(self) -> bytes:
        """All numbers, before compression."""
        return b"".join(self._parts)


class SideReader:
    """Reads what :class:`SideWriter` wrote."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int, dtype: str) -> npt.NDArray[np.int64]:
        """The next ``count`` numbers.

        Raises:
            GolfError: fewer are left.
        """
        item = np.dtype(dtype)
        if count < 0 or self._at + count * item.itemsize > len(self._data):
            raise GolfError("a coded section is damaged: its tables end too early.")
        values = np.frombuffer(self._data, item, count, self._at)
        self._at += count * item.itemsize
        return values.astype(np.int64)

    def one(self, dtype: str) -> int:
        """The next number."""
        return int(self.take(1, dtype)[0])

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            GolfError: something is.
        """
        if self._at != len(self._data):
            raise GolfError("a coded section is damaged: its tables are too long.")
