"""Packs and unpacks with zlib, where a test is not about the coder, which takes half a minute for a whole program."""

import zlib

from golf_lightning.submission import bundle


def unpack_text(payload: bytes, primer: bytes) -> bytes:
    return zlib.decompress(payload)


def packed(text: bytes, primer: bytes) -> bytes:
    return zlib.compress(text, 9)


class SizingHere:
    """Puts the program together here and now, with the packing that this process has."""

    def __init__(self, config: str) -> None:
        self._size = len(bundle.Program(config).read())

    def result(self, wait: bool) -> int:
        return self._size
