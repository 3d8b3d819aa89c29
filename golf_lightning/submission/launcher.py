"""The readable head of a bundled program; the bundler copies this file's source, minified, in front of the payload.

It imports nothing of the project before the sources are unpacked.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pyppmd

COMMANDS = ("fit", "validate", "export", "test")
"""The commands that a bundled program knows."""
ORDER = 16
"""Longest context in bytes that PPMd predicts the next byte from; longer ones gain nothing."""


def unpack(payload: bytes) -> Path:
    """The folder of the unpacked sources: one for equal payloads, in the user's cache, made by whoever comes first.

    Ranks may start at once: each writes a folder of its own, and a rename makes one of them the shared one. Where the
    cache cannot be written, a temporary folder serves this process alone.

    Args:
        payload: PPMd data of ``path NUL text`` pairs, joined by NUL.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "golf_lightning")
    shared = cache / hashlib.sha256(payload).hexdigest()
    if shared.is_dir():
        return shared
    try:
        cache.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=cache))
    except OSError:
        own = shared = Path(tempfile.mkdtemp())
    text = pyppmd.decompress(payload, max_order=ORDER)
    assert isinstance(text, bytes)
    pieces = iter(text.decode().split("\0"))
    for path, text in zip(pieces, pieces, strict=True):
        file = own / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    if own != shared:
        try:
            own.rename(shared)
        except OSError:
            shutil.rmtree(own)
            if not shared.is_dir():
                raise
    return shared


def launch(payload: bytes, python: tuple[int, int]) -> None:
    """Unpack and run one of the project's commands, ``fit`` if none is named; never returns.

    Args:
        payload: see :func:`unpack`.
        python: oldest Python that can read the sources.
    """
    if sys.version_info < python:
        _refuse(f"this program was made with Python {python[0]}.{python[1]}; run it with that or a newer one.")
    arguments = sys.argv[1:]
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "fit"
    if command not in COMMANDS:
        _refuse(f"{command!r} is not part of this program; choose one of {', '.join(COMMANDS)}.")
    folder = unpack(payload)
    sys.path.insert(0, str(folder))
    from golf_lightning.__main__ import end_process, main

    size = f"--model.export.budget.code_bytes={os.path.getsize(__file__)}"
    end_process(main([command, "--config", str(folder / "config.json"), size, *arguments]))


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
