"""Decompression that a forged file cannot turn into a flood."""

import brotli

from golf_lightning.errors import GolfError


def brotli_decompress(data: bytes, size: int) -> bytes:
    """Exactly ``size`` bytes from brotli data; it stops at the first output beyond them.

    Raises:
        GolfError: ``data`` is damaged, or gives another number of bytes.
    """
    decompressor = brotli.Decompressor()
    parts: list[bytes] = []
    total = 0
    try:
        feed = data
        while not decompressor.is_finished():
            part = decompressor.process(feed, output_buffer_limit=size - total + 1)
            feed = b""
            total += len(part)
            parts.append(part)
            if total > size:
                raise GolfError(f"a section decodes to more than the {size} bytes it declares.")
            if not part and decompressor.can_accept_more_data() and not decompressor.is_finished():
                raise GolfError("a compressed section ends too early.")
    except brotli.error:
        raise GolfError("a compressed section is damaged.") from None
    if total != size:
        raise GolfError(f"a section decodes to {total} bytes where {size} are declared.")
    return b"".join(parts)
