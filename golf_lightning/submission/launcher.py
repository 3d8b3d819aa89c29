"""The readable head of a bundled program: this source, minified, stands in front of the payload, squeeze.py before it.

The bundler drops the import of squeeze.py; nothing else of the project is imported before the sources are unpacked.
"""

import ast
import contextlib
import fcntl
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


def unpack(payload: bytes, primer: bytes) -> Path:
    """The folder of the unpacked sources: one for equal payloads, in the user's cache, made by whoever comes first.

    Ranks start at once: one unpacks while the others wait for the lock of this file, and where there are no locks each
    writes a folder of its own and a rename makes one of them the shared one. Where the cache cannot be written, a
    temporary folder serves this process alone.

    Args:
        payload: the table of imports and ``path NUL text`` pairs, joined by NUL and packed.
        primer: what it was packed with.

    Raises:
        ValueError: the payload is damaged.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "golf_lightning")
    shared = cache / hashlib.sha256(payload).hexdigest()
    if shared.is_dir():
        return shared
    with contextlib.ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            own = Path(tempfile.mkdtemp(dir=cache))
            stack.callback(shutil.rmtree, own, ignore_errors=True)
            lock = stack.enter_context(open(__file__, "rb"))
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            own = shared = Path(tempfile.mkdtemp())
        else:
            if shared.is_dir():
                return shared
        print("unpacking the program, about half a minute, at its first start only", file=sys.stderr, flush=True)
        table, *pieces = unpack_text(payload, primer).decode().split("\0")
        files = dict(zip(pieces[::2], pieces[1::2], strict=True))
        imports = known_imports(files, table)
        for path, text in files.items():
            file = own / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(with_imports(path, text, imports), encoding="utf-8")
        if own != shared:
            try:
                own.rename(shared)
            except OSError:
                if not shared.is_dir():
                    raise
    return shared


def known_imports(files: dict[str, str], table: str) -> dict[str, str]:
    """The import that a name stands for, by name; empty where it stands for none.

    Args:
        files: text by path relative to the folder of all. What one module alone defines is imported from there.
        table: other imports, as ``from a import b,c as d``; a line ``a,b`` lists names that stand for none.
    """
    imports: dict[str, str] = {}
    for path, text in files.items():
        if module := _module(path):
            for node in ast.parse(text).body:
                for name in _defined(node):
                    line = f"from {module} import {name}"
                    imports[name] = line if imports.get(name, line) == line else ""
    for line in table.splitlines():
        start, found, names = line.rpartition("import ")
        for name in names.split(","):
            imports[imported_name(name)] = found and f"{start}import {name}"
    return imports


def _module(path: str) -> str:
    """The module that a file holds, or nothing."""
    return path[:-3].replace("/", ".").removesuffix(".__init__") if path.endswith(".py") else ""


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def with_imports(path: str, text: str, imports: dict[str, str]) -> str:
    """A file, with the imports of the names that it mentions if it is a module; nothing imports itself.

    Args:
        path: the file, relative to the folder of all.
        text: what is in it.
        imports: from :func:`known_imports`.
    """
    module = _module(path)
    if not module:
        return text
    lines = [imports.get(name, "") for name in sorted(used_names(text))]
    head = ";".join(line for line in lines if line and not line.startswith(f"from {module} "))
    future, text = split_future(text)
    return future + head + "\n" + text


def used_names(text: str) -> set[str]:
    """Every name that a source mentions."""
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def imported_name(line: str) -> str:
    """The name that an import of one name binds."""
    return line.split(" ")[-1].split(".")[0]


def split_future(text: str) -> tuple[str, str]:
    """A source's first line if it is an import from ``__future__``, which must stay the first, and the rest."""
    lines = text.splitlines(keepends=True)
    count = int(text.startswith("from __future__ "))
    return "".join(lines[:count]), "".join(lines[count:])


def launch(payload: bytes, primer: bytes, python: tuple[int, int]) -> None:
    """Unpack and run one of the project's commands, ``fit`` if none is named; never returns.

    Args:
        payload: see :func:`unpack`.
        primer: likewise.
        python: oldest Python that can read the sources.
    """
    if sys.version_info < python:
        _refuse(f"this program was made with Python {python[0]}.{python[1]}; run it with that or a newer one.")
    arguments = sys.argv[1:]
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "fit"
    if command not in COMMANDS:
        _refuse(f"{command!r} is not part of this program; choose one of {', '.join(COMMANDS)}.")
    try:
        folder = unpack(payload, primer)
    except ValueError as error:
        _refuse(str(error))
    sys.path.insert(0, str(folder))
    from golf_lightning.__main__ import end_process, main

    size = f"--model.export.budget.code_bytes={os.path.getsize(__file__)}"
    end_process(main([command, "--config", str(folder / "config.json"), size, *arguments]))


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
