"""The readable head of a bundled program: this source, minified, stands in front of the payload, squeeze.py before it.

The bundler drops the import of squeeze.py; nothing else of the project is imported before the sources are unpacked.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from golf_lightning.submission.squeeze import unpack_text

COMMANDS = ("fit", "validate", "export", "test")
"""The commands that a bundled program knows."""


def unpack(payload: bytes) -> Path:
    """The folder of the unpacked sources: one for equal payloads, in the user's cache, made by whoever comes first.

    Ranks may start at once: each writes a folder of its own, and a rename makes one of them the shared one. Where the
    cache cannot be written, a temporary folder serves this process alone.

    Args:
        payload: ``path NUL text`` pairs, joined by NUL and packed.

    Raises:
        ValueError: the payload is damaged.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "golf_lightning")
    shared = cache / hashlib.sha256(payload).hexdigest()
    if shared.is_dir():
        return shared
    # Unpacked before any folder is made: a damaged file leaves nothing behind.
    print("unpacking the program, about half a minute, at its first start only", file=sys.stderr, flush=True)
    pieces = iter(unpack_text(payload).decode().split("\0"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=cache))
    except OSError:
        own = shared = Path(tempfile.mkdtemp())
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
    try:
        folder = unpack(payload)
    except ValueError as error:
        _refuse(str(error))
    sys.path.insert(0, str(folder))
    from golf_lightning.__main__ import end_process, main

    size = f"--model.export.budget.code_bytes={os.path.getsize(__file__)}"
    end_process(main([command, "--config", str(folder / "config.json"), size, *arguments]))


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
