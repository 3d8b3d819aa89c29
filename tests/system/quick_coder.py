"""Packs and unpacks with zlib, where a test is not about the coder, which takes half a minute for a whole program."""

import zlib


def unpack_text(payload: bytes, primer: bytes) -> bytes:
    return zlib.decompress(payload)


class QuickPacking:
    def __init__(self, text: bytes, primer: bytes) -> None:
        self._text = text

    def result(self) -> bytes:
        return zlib.compress(self._text, 9)
