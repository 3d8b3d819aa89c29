"""``python -m golf_lightning submission``: its options, and what it prints."""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from golf_lightning.audit import AuditConfig
from golf_lightning.submission.bundle import bundle
from golf_lightning.submission.entry import Author
from golf_lightning.submission.submission import Refused, submit


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m golf_lightning submission",
        description="Make the contest's folder out of finished runs that differ in their seeds alone. Every run is "
        "audited first; what fails is refused, with reasons and exit status 1.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run, one for each seed")
    parser.add_argument("--name", required=True, help="title of the submission")
    parser.add_argument("--github-id", required=True, metavar="ID", help="account of the author")
    parser.add_argument("--author", default="", metavar="NAME", help="name of the author (default: the account)")
    parser.add_argument("--blurb", default="", metavar="TEXT", help="one or two sentences about the method")
    parser.add_argument("--out", metavar="FOLDER", help="folder to make (default: submissions/DATE_NAME)")
    parser.add_argument("--data", metavar="FOLDER", help="data folder (default: that of the runs' configuration)")
    parser.add_argument("--against", type=float, metavar="BPB", help="bits per byte of the record to compare with")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="fewest seeds (default: %(default)s)")
    defaults = AuditConfig()
    for name in ("positions", "lengths", "distributions", "documents"):
        value = getattr(defaults, name)
        parser.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"of the audit, see its help (default: {value})"
        )
    parser.add_argument("--whole", action="store_true", help="let the audit score the whole split again, for each seed")
    return parser


def main(argv: Sequence[str]) -> int:
    """Make a submission.

    Args:
        argv: what stands after ``submission``.

    Returns:
        the exit status: 0, or 1 when the runs are refused.

    Raises:
        GolfError: bad input, told in one sentence.
        SystemExit: the command line is wrong, or help was asked for.
    """
    arguments = build_parser().parse_args(argv)
    slug = re.sub(r"[^A-Za-z0-9]+", "_", arguments.name).strip("_") or "submission"
    out = Path(arguments.out or f"submissions/{datetime.now(timezone.utc):%Y-%m-%d}_{slug}")
    try:
        entry = submit(
            arguments.runs,
            out,
            Author(name=arguments.name, github_id=arguments.github_id, author=arguments.author, blurb=arguments.blurb),
            bundler=bundle,
            data=arguments.data,
            audit_config=AuditConfig(
                positions=arguments.positions,
                lengths=arguments.lengths,
                distributions=arguments.distributions,
                documents=arguments.documents,
                whole=arguments.whole,
            ),
            against_bpb=arguments.against,
            seeds=arguments.seeds,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except Refused as refusal:
        print("This cannot be submitted:", *(f"- {reason}" for reason in refusal.reasons), sep="\n", file=sys.stderr)
        return 1
    print(f"{entry['val_bpb']:.5f} bits per byte, {entry['bytes_total']:,} bytes; wrote {out}")
    return 0
