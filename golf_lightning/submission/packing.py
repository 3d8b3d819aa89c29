"""Packs a program's sources, which takes about a minute, and keeps what it made."""

import hashlib
import os
from pathlib import Path

from golf_lightning.files import write_whole
from golf_lightning.submission import squeeze


def packed(text: bytes, primer: bytes) -> bytes:
    """The payload of ``text``, from the user's cache if it was made before; it is sure to unpack.

    The cache is ``~/.cache/golf_lightning/packed`` (``$XDG_CACHE_HOME``), named by the hash of the texts and the coder.

    Args:
        text: what to pack.
        primer: what the unpacker knows; see :func:`~golf_lightning.submission.squeeze.pack`.

    Raises:
        GolfError: the cache cannot be written.
    """
    size = len(primer).to_bytes(4, "big")
    name = hashlib.sha256(Path(squeeze.__file__).read_bytes() + size + primer + text).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "golf_lightning")
    path = cache / "packed" / name
    if path.is_file():
        return path.read_bytes()
    payload = squeeze.pack(text, primer)
    assert squeeze.unpack_text(payload, primer) == text, "the coder must give the sources back"
    with write_whole(path) as file:
        file.write(payload)
    return payload
