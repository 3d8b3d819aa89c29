"""The command line ``python -m golf_lightning audit``."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from golf_lightning.audit.run import AuditConfig, Precision, audit
from golf_lightning.files import write_json

DESCRIPTION = """Check an artifact's score against the rules of the contest: causal, normalized, score before update,
every target once, bytes, clocks, and training that has not seen validation. Exits with 1 when a check fails."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(prog="python -m golf_lightning audit", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--artifact", required=True, metavar="FILE", help="the artifact, runs/NAME/artifact.golf")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the prepared data folder")
    parser.add_argument("--run", metavar="FOLDER", help="the run that made it: its settings, sums, clocks and logs")
    parser.add_argument("--code", metavar="FILE", help="program that counts towards the bytes (RUN/train_gpt.py)")
    parser.add_argument("--json", metavar="FILE", help="also write the report as JSON")
    defaults = AuditConfig()

    def number(name: str, meaning: str) -> None:
        value = getattr(defaults, name)
        parser.add_argument(
            f"--{name}", type=type(value), default=value, metavar="N", help=f"{meaning} (default: {value:,})"
        )

    number("positions", "tokens that the flip test changes, one at a time")
    number("lengths", "places at which a document is ended early")
    number("distributions", "places at which every token of the vocabulary is scored, 0 for none")
    number("documents", "documents whose beginnings make the sample")
    number("chunks", "longest beginning, in chunks of test-time training")
    number("window_chunks", "window of the sample, in chunks")
    parser.add_argument("--whole", action="store_true", help="also score the whole split as the run did, and compare")
    number("limit_bytes", "most bytes of artifact and program")
    number("training_limit_s", "most seconds of training")
    number("scoring_limit_s", "most seconds of scoring")
    choices = get_args(Precision)
    parser.add_argument(
        "--precision", choices=choices, default="auto", help="of the network (bfloat16 on a GPU, float32 on a CPU)"
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:1 (default: a GPU where there is one)"
    )
    number("seed", "of everything that is drawn")
    return parser


def main(argv: Sequence[str]) -> int:
    """Audit, print the table, and write the report.

    Args:
        argv: what stands after ``audit``.

    Returns:
        the exit status: 0, or 1 when a check failed.

    Raises:
        GolfError: bad input, told in one sentence.
        SystemExit: the command line is wrong, or help was asked for.
    """
    arguments = build_parser().parse_args(argv)
    names = {field.name for field in dataclasses.fields(AuditConfig)}
    config = AuditConfig(**{name: value for name, value in vars(arguments).items() if name in names})
    errors = Console(stderr=True)
    with errors.status("auditing") as status:
        report = audit(
            arguments.artifact,
            arguments.data,
            run_folder=arguments.run,
            code=arguments.code,
            config=config,
            progress=status.update if errors.is_terminal else errors.print,
        )
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(report.table())
    console.print(report.summary(), highlight=False)
    if arguments.json:
        write_json(Path(arguments.json), report.to_dict())
    return 0 if report.passed else 1
