"""Packs and unpacks with zlib, where a test is not about the coder, which takes half a minute for a whole program."""

import zlib

from golf_lightning.submission import bundle, squeeze


def unpack_text(payload: bytes, primer: bytes) -> bytes:
    return zlib.decompress(payload)


class QuickPacking:
    def __init__(self, text: bytes, primer: bytes) -> None:
        self._text, self._primer = text, primer

    def result(self) -> bytes:
        return zlib.compress(self._text, 9)


class PackingUnread(QuickPacking):
    """Packs with the coder, here and now, and does not make sure that it can be unpacked, which takes as long again."""

    def result(self) -> bytes:
        return squeeze.pack(self._text, self._primer)


class SizingHere:
    """Puts the program together here and now, with the packing that this process has."""

    def __init__(self, config: str) -> None:
        self._size = len(bundle.Program(config).read())

    def result(self, wait: bool) -> int:
        return self._size
