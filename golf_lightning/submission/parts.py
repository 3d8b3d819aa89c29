"""What the parts of a bundled program take: where to look for bytes to save."""

import lzma

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 1}]


def shares(files: dict[str, str], total: int) -> dict[str, int]:
    """Bytes that each file takes of ``total``, largest first.

    What LZMA, told to be quick, saves without a file stands for what the bundle's own coder would, which takes half a
    minute each time; the savings are scaled so that they add up.

    Args:
        files: text by path.
        total: bytes of all of them, packed.
    """
    whole = _packed(files)
    saved = {path: whole - _packed({p: text for p, text in files.items() if p != path}) for path in files}
    scale = total / max(sum(saved.values()), 1)
    return {path: round(size * scale) for path, size in sorted(saved.items(), key=lambda item: -item[1])}


def _packed(files: dict[str, str]) -> int:
    text = "\0".join(piece for file in files.items() for piece in file)
    return len(lzma.compress(text.encode(), lzma.FORMAT_RAW, filters=FILTERS))
