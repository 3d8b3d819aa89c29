"""The report as one HTML page and one PNG."""

import io
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from golf_lightning.reporting.bars import Panel
from golf_lightning.reporting.panels import LINES, colour, panels
from golf_lightning.reporting.result import SCORES
from golf_lightning.reporting.seeds import Comparison, Group
from golf_lightning.reporting.style import PAPER, RC, SERIES, css_variables, svg
from golf_lightning.reporting.tables import comparisons_table, groups_table, runs_table, seconds_table

TEMPLATE = "report.html.jinja"
PNG_DPI = 110
LEGEND_LETTERS = 130
"""About so many letters fit side by side in the picture."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a page is made of.

    Attributes:
        title: heading.
        groups: runs by configuration.
        comparisons: what was compared with what.
        against: bits per byte that the groups were compared with, if it was a number.
    """

    title: str
    groups: list[Group]
    comparisons: list[Comparison]
    against: float | None = None

    @property
    def verdicts(self) -> list[Comparison]:
        """Of the comparisons of each group, the one of the last score."""
        return list({one.group: one for one in self.comparisons}.values())

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What a reader should know first: names of groups or runs, and a sentence about them."""
        said: dict[str, list[str]] = {}
        for group in self.groups:
            for note in group.notes:
                said.setdefault(note, []).append(group.name)
        for run in (run for group in self.groups for run in group.runs):
            for sentence in run.missing:
                said.setdefault(sentence, []).append(run.name)
        return [(", ".join(names), sentence) for sentence, names in said.items()]

    @property
    def panels(self) -> list[Panel]:
        """What there is to draw."""
        return panels(self.groups, self.against)


def html(report: Report) -> str:
    """One self-contained page: no scripts, nothing fetched, light or dark as the reader's system is."""
    template = resources.files("golf_lightning.reporting").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    runs = [run for group in report.groups for run in group.runs]
    tables = [
        groups_table(report.groups),
        comparisons_table(report.comparisons),
        runs_table(runs),
        seconds_table(runs),
    ]
    return environment.from_string(template).render(
        title=report.title,
        legend=_legend(report.groups),
        cards=[_card(index, group) for index, group in enumerate(report.groups)],
        panels=[(panel, Markup(svg(panel.draw, panel.title, panel.key))) for panel in report.panels],
        tables=[table for table in tables if table is not None],
        verdicts=report.verdicts,
        scores=SCORES,
        partial=any(score["partial"] for run in runs for score in run.scores.values()),
        notes=report.notes,
        light=Markup(css_variables(dark=False)),
        dark=Markup(css_variables(dark=True)),
    )


def _legend(groups: list[Group]) -> list[dict[str, Any]]:
    dashes = {"-": "none", "--": "7 4", "-.": "8 3 2 3", ":": "2 3"}
    return [
        {"name": run.name, "series": index % len(SERIES), "dash": dashes[LINES[number % len(LINES)]]}
        for index, group in enumerate(groups)
        for number, run in enumerate(group.runs)
    ]


def _card(index: int, group: Group) -> dict[str, Any]:
    """The one figure that matters, and what stands beside it."""
    card: dict[str, Any] = {"name": group.name, "series": index % len(SERIES), "runs": len(group.runs), "figure": None}
    if (name := group.final) is not None and (found := group.statistics(name)) is not None:
        partial = any(run.scores[name]["partial"] for run in group.runs if name in run.scores)
        card |= {
            "figure": f"{found.mean_bpb:.4f}",
            "spread": None if found.sd_bpb is None else f"± {found.sd_bpb:.4f}",
            "what": f"bits per byte {SCORES[name]}" + (", on a part of the split" if partial else ""),
            "nats": f"{found.mean_nats:.4f} nats per target",
        }
    headroom = [run.result["artifact"]["headroom_bytes"] for run in group.runs if "artifact" in run.result]
    card["headroom"] = min(headroom) if headroom else None
    return card


def png(report: Report) -> bytes:
    """All panels in one picture, two in a row, with a legend of the runs below; light colours."""
    shown = report.panels
    rows = math.ceil(len(shown) / 2)
    lines = [
        Line2D([], [], color=colour(index), linestyle=LINES[number % len(LINES)], linewidth=2)
        for index, group in enumerate(report.groups)
        for number in range(len(group.runs))
    ]
    settings: Any = RC
    with rc_context(settings):
        figure = Figure(figsize=(12, 0.9 + 3.9 * max(rows, 1)), layout="constrained", facecolor=PAPER)
        figure.suptitle(report.title, x=0.02, ha="left", fontweight="bold", fontsize=15)
        names = [run.name for group in report.groups for run in group.runs]
        columns = max(1, min(6, LEGEND_LETTERS // (max(map(len, names)) + 8)))
        figure.legend(lines, names, loc="outside lower left", ncols=columns, frameon=False)
        axes = figure.subplots(max(rows, 1), 2, squeeze=False).flatten()
        for place, panel in zip(axes, shown, strict=False):
            panel.draw(place)
            place.set_title(panel.title)
        for place in axes[len(shown) :]:
            place.set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return file.getvalue()
