"""``python -m golf_lightning report``: runs side by side, on one page and in one picture."""

import argparse
import math
from pathlib import Path

from golf_lightning.errors import GolfError
from golf_lightning.files import write_whole
from golf_lightning.reporting.page import Report, html, png
from golf_lightning.reporting.result import SCORES
from golf_lightning.reporting.runs import read_run
from golf_lightning.reporting.seeds import Comparison, Group, compare, group_runs
from golf_lightning.reporting.tables import comparisons_table, groups_table

LONGEST_TITLE = 60
"""Letters of a heading that names all groups."""

PICTURE_SUFFIXES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".gif", ".webp")

RUN_HELP = "folder of a run, such as runs/golf; files are passed over, so that runs/* may hold an earlier report"


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    folders = [path for path in arguments.runs if not path.is_file()] or arguments.runs
    out = arguments.out or _default_out(folders)
    picture = _picture(out, arguments.png)
    groups = group_runs([read_run(folder) for folder in folders])
    against = _against(arguments.against, groups)
    report = Report(
        title=_title(groups),
        groups=groups,
        comparisons=[] if against is None else _compare_all(groups, against),
        against=against if isinstance(against, float) else None,
    )
    with write_whole(out, "w") as file:
        file.write(html(report))
    with write_whole(picture) as file:
        file.write(png(report))
    for table in (groups_table(groups), comparisons_table(report.comparisons)):
        if table is not None:
            print(table.text(), end="\n\n")
    for comparison in report.verdicts:
        print(f"{comparison.group}, {SCORES[comparison.score]}: {comparison.verdict}")
    for names, sentence in report.notes:
        print(f"{names}: {sentence}")
    print(f"wrote {out} and {picture}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m golf_lightning report",
        description="Show runs side by side: curves, scores, seconds and bytes, and seeds of one configuration as mean "
        "and spread. Runs whose configurations differ only in seeds and names form a group.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--out", type=Path, help="the HTML page; RUN/report.html for one run, report.html beside the folders for more"
    )
    parser.add_argument("--png", type=Path, help="the picture; beside the page by default")
    parser.add_argument(
        "--against",
        metavar="GROUP|NUMBER",
        help="compare every group's scores with this group's (or this run's), or its last score with this number of "
        "bits per byte",
    )
    return parser


def _title(groups: list[Group]) -> str:
    names = ", ".join(group.name for group in groups)
    return names if len(names) <= LONGEST_TITLE else f"{len(groups)} configurations"


def _default_out(runs: list[Path]) -> Path:
    return runs[0] / "report.html" if len(runs) == 1 else runs[0].parent / "report.html"


def _picture(out: Path, png: Path | None) -> Path:
    """The picture's file: never the page's, since their endings differ."""
    if out.suffix.lower() in PICTURE_SUFFIXES:
        raise GolfError(f"--out is {out}, but the page is HTML; end it in .html, and name the picture with --png.")
    for option, path in (("--out", out), ("--png", png)):
        if path is not None and path.is_dir():
            raise GolfError(f"{option} {path} is a folder; name a file in it.")
    if png is not None and png.suffix.lower() != ".png":
        raise GolfError(f"--png is {png}, but the picture is PNG; end it in .png.")
    return png or out.with_suffix(".png")


def _against(text: str | None, groups: list[Group]) -> Group | float | None:
    if text is None:
        return None
    for group in groups:
        if text == group.name or text in (run.name for run in group.runs):
            return group
    try:
        number = float(text)
    except ValueError:
        names = ", ".join(group.name for group in groups)
        raise GolfError(
            f"--against is {text!r}; give a number of bits per byte, or one of the groups of these runs: {names}."
        ) from None
    if not 0 < number < math.inf:
        raise GolfError(f"--against is {text}; give bits per byte above 0, such as 1.07747.")
    return number


def _compare_all(groups: list[Group], against: Group | float) -> list[Comparison]:
    """Every score of every other group against a group; the last score of every group against a number."""
    found = []
    for group in groups:
        if isinstance(against, Group):
            names = [name for name in SCORES if group is not against]
        else:
            names = [group.final] if group.final else []
        found += [one for name in names if (one := compare(group, against, name)) is not None]
    if not found:
        raise GolfError(
            "There is nothing to compare with --against: no two groups share a score; give finished runs of more than "
            "one configuration, or a number of bits per byte."
        )
    return found
