"""``python -m golf_lightning bundle``: the whole program as one ``train_gpt.py``.

The file is Python source in Latin-1: a string literal with the deflated head that unpacks and runs, and one whose
characters are the bytes of the compressed sources, where base85 would take 25% more. Context mixing (see squeeze.py)
makes of source text a quarter less than Brotli, and learns from the head first. The sources are unpacked as files,
since Triton and the command line read them.
"""

import argparse
import ast
import inspect
import json
import re
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import python_minifier
import yaml

from golf_lightning.errors import GolfError
from golf_lightning.files import write_whole
from golf_lightning.submission import launcher, squeeze
from golf_lightning.submission.closure import Sources, carried_packages, class_paths, reach, source_of
from golf_lightning.submission.imports import share_imports
from golf_lightning.submission.options import without, without_defaults
from golf_lightning.submission.packing import packed
from golf_lightning.submission.parts import shares
from golf_lightning.submission.slim import TypeStripper, drop_dead_code, drop_docstrings, free_parameters, minify

ENTRY = "golf_lightning.__main__"
TITLE = "# golf_lightning in one file: python train_gpt.py [fit|validate|export|test] [options]\n"
NOT_BUNDLED = ("ckpt_path", "config", "model.export.budget.code_bytes")
"""Settings that must not travel: where a run continued from, the files it was read from, and what the program knows."""


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What was bundled.

    Attributes:
        bytes: size of the file.
        modules: names of the modules in it.
        files: text of every file in it, by path.
        seconds: time it took.
    """

    bytes: int
    modules: tuple[str, ...]
    files: dict[str, str]
    seconds: float


def bundle(config: str | Path, out: str | Path) -> BundleReport:
    """Write the program of a run as one file; the same sources and configuration give the same bytes.

    Args:
        config: a run's ``config.yaml``, which becomes the default of every option.
        out: the file to write, usually ``train_gpt.py``.

    Raises:
        GolfError: the configuration cannot be read, names a class without source, or ``out`` cannot be written.
    """
    try:
        text = Path(config).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GolfError(f"Cannot read {config}: {error}; give a run's config.yaml.") from None
    start = time.perf_counter()
    made = Program(text)
    program = made.read()
    with write_whole(out) as file:
        file.write(program)
    return BundleReport(len(program), made.modules, made.files, time.perf_counter() - start)


class Program:
    """The program of a run.

    Attributes:
        modules: names of the modules in it.
        files: text of every file in it, by path.

    Args:
        config: the resolved configuration as YAML text.

    Raises:
        GolfError: the configuration cannot be read or names a class without source.
    """

    def __init__(self, config: str) -> None:
        settings, folders = read_settings(config)
        table, texts = share_imports(needed_sources(settings, folders), minify)
        files = {"config.json": json.dumps(settings, separators=(",", ":"))}
        for name, text in texts.items():
            path = source_of(name, folders)
            assert path is not None
            files[path.relative_to(folders[name.partition(".")[0]]).as_posix()] = text
        self.modules, self.files = tuple(texts), files
        self._head = _head()
        pieces = [table, *(piece for file in files.items() for piece in file)]
        self._text = "\0".join(pieces).encode()

    def read(self) -> bytes:
        """The program's bytes, packed, which takes a minute where it was not done before.

        Raises:
            GolfError: the cache of packed programs cannot be written.
        """
        return _program(self._head, packed(self._text, self._head))


def read_settings(config: str) -> tuple[dict[str, Any], dict[str, Path]]:
    """The options that travel with a program, and the folders of the packages whose sources do.

    Args:
        config: the resolved configuration as YAML text.

    Raises:
        GolfError: the configuration cannot be read or names a class without source.
    """
    try:
        values = yaml.safe_load(config)
    except yaml.YAMLError as error:
        raise GolfError(f"The configuration is not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(values, dict):
        raise GolfError("The configuration is not a mapping of options; give a run's config.yaml.")
    settings = without_defaults(without(values, NOT_BUNDLED))
    return settings, carried_packages(class_paths(settings))


def needed_sources(settings: dict[str, Any], folders: dict[str, Path]) -> Sources:
    """Trees of the modules that the commands reach, without what they never use.

    Args:
        settings: the configuration; the classes it names are reached too.
        folders: from :func:`~golf_lightning.submission.closure.carried_packages`.
    """
    trees: dict[str, ast.Module | None] = {}
    stripper = TypeStripper()

    def parse(name: str) -> ast.Module | None:
        if name not in trees:
            path = source_of(name, folders)
            trees[name] = tree = ast.parse(path.read_text(encoding="utf-8")) if path else None
            if tree is not None:
                drop_docstrings(tree)
                stripper.visit(tree)
        return trees[name]

    named = list(class_paths(settings))
    roots = [ENTRY, *(path.rpartition(".")[0] for path in named)]
    sources = reach(roots, parse)
    used = ["main", "end_process", *(path.rpartition(".")[2] for path in named)]
    while drop_dead_code(sources, used):
        sources = reach(roots, parse)
    free_parameters(sources, stripper.overrides)
    return sources


def _head() -> bytes:
    """Source of what unpacks and runs the program."""
    head = ast.parse(inspect.getsource(squeeze) + inspect.getsource(launcher))
    head.body = [
        s for s in head.body if not (isinstance(s, ast.ImportFrom) and str(s.module).startswith("golf_lightning."))
    ]
    drop_docstrings(head)
    TypeStripper().visit(head)
    text = python_minifier.minify(
        ast.unparse(head), rename_globals=True, preserve_globals=["launch"], hoist_literals=False
    )
    return text.encode("ascii")


def _program(head: bytes, payload: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    small = compressor.compress(head) + compressor.flush()
    return "\n".join(
        [
            f"# coding: latin-1\n{TITLE}import zlib",
            f'HEAD=zlib.decompress({_literal(small)}.encode("latin-1"),-15)',
            f"DATA={_literal(payload)}",
            "exec(HEAD)",
            # The call stands on a line of its own, which is what a traceback shows.
            f'if __name__=="__main__":launch(DATA.encode("latin-1"),HEAD,{sys.version_info[:2]})\n',
        ]
    ).encode("latin-1")


def _literal(data: bytes) -> str:
    """A string literal of Latin-1 characters with the values of ``data``.

    Python reads no source with NUL in it and turns every CR into a line feed, so these are escaped.
    """
    text = data.decode("latin-1").replace("\\", "\\\\").replace("\r", "\\r")
    text = re.sub("\0(?![0-7])", r"\\0", text).replace("\0", "\\x00")
    return '"""' + re.sub(r'"(?="|\Z)', r"\"", text) + '"""'


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m golf_lightning bundle",
        description="Write the whole program with a run's configuration as one file that fits, exports and scores.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a run's config.yaml, the file's defaults")
    parser.add_argument("--out", default="train_gpt.py", metavar="FILE", help="file to write (default: %(default)s)")
    parser.add_argument("--parts", action="store_true", help="also print about how many bytes each file in it takes")
    arguments = parser.parse_args(argv)
    report = bundle(arguments.config, arguments.out)
    print(f"{arguments.out}: {report.bytes:,} bytes, {len(report.modules)} modules, {report.seconds:.1f} s")
    if arguments.parts:
        for path, size in shares(report.files, report.bytes).items():
            print(f"{size:7,} {path}")
    return 0
