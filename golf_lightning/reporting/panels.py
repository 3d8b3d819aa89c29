"""The report's panels: each draws one thing about all runs into a matplotlib axes."""

import math
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from golf_lightning.reporting.bars import Panel, bytes_by_role, bytes_panel, ledger_panel
from golf_lightning.reporting.documents import DocumentTable
from golf_lightning.reporting.result import SCORES
from golf_lightning.reporting.runs import Run
from golf_lightning.reporting.seeds import Group
from golf_lightning.reporting.style import INK, MUTED, SERIES

# P logged points, N documents, B bins

BIN_EDGES = (0, 64, 128, 256, 512, 1024, 2048, 4096)
"""Lengths of documents, in targets, between which the gain of test-time training is pooled."""
LINES: "tuple[Literal['-', '--', '-.', ':'], ...]" = ("-", "--", "-.", ":")
"""Runs of one group share a colour and differ in these."""


def panels(groups: list[Group], against: float | None = None) -> list[Panel]:
    """The panels for which any run has something to show.

    Args:
        groups: runs by configuration; the order decides the colours.
        against: bits per byte that is marked among the scores.
    """
    runs = [run for group in groups for run in group.runs]
    found = [_curve_panel(groups, key) for key in CURVES if any(_has(run, key) for run in runs)]
    if any(run.scores for run in runs):
        found.append(_scores_panel(groups, against))
    if any(_gains(run.documents) is not None for run in runs):
        found.append(_gain_panel(groups))
    if timed := [run for run in runs if run.result.get("ledger")]:
        found.append(ledger_panel(timed))
    if exported := [run for run in runs if bytes_by_role(run)]:
        found.append(bytes_panel(exported))
    return found


def colour(index: int) -> str:
    """Colour of the ``index``-th group."""
    return SERIES[index % len(SERIES)]


CURVES = {
    "loss": ("step", "loss", "Training loss by step", "nats per target"),
    "loss_seconds": ("seconds", "loss", "Training loss by seconds", "nats per target"),
    "speed": ("step", "tokens_per_second", "Speed", "tokens per second"),
    "lr": ("step", "lr", "Learning rate of the banks", ""),
    "momentum": ("step", "momentum", "Momentum of the banks", ""),
    "grad_norm": ("step", "grad_norm", "Norm of the gradient before the clip", ""),
}
"""Panels of logged values: what is on either axis, the title and the unit."""


def _has(run: Run, key: str) -> bool:
    x, y, *_ = CURVES[key]
    return y in run.curve and bool(np.isfinite(run.curve[y] + run.curve[x]).any())


def _curve_panel(groups: list[Group], key: str) -> Panel:
    x, y, title, unit = CURVES[key]
    notes = []
    if any(run.switch_step for group in groups for run in group.runs):
        notes.append("Dotted: recurrence begins.")
    if y == "loss":
        notes.append("Rank 0's mean between two lines of the log. The first steps may lie above the frame.")
        if any("val/bpb" in run.curve for group in groups for run in group.runs):
            notes.append("Crosses: validation.")

    def draw(axes: Axes) -> None:
        top = 0.0
        for index, group in enumerate(groups):
            for number, run in enumerate(group.runs):
                if _has(run, key):
                    _draw_curve(axes, run, (x, y), colour(index), LINES[number % len(LINES)])
                    top = max(top, _settled(run.curve[y]))
        axes.set_xlabel("step" if x == "step" else "seconds of training")
        axes.set_ylabel(unit)
        axes.set_xlim(left=0)
        if y == "loss":
            low = axes.get_ylim()[0]
            axes.set_ylim(top=top + 0.05 * (top - low))
            _add_bpb_axis(axes, groups)
        else:
            axes.set_ylim(bottom=None if y == "momentum" else 0)
        if y == "tokens_per_second":
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "step"))

    return Panel(key, title, " ".join(notes), draw)


def _draw_curve(axes: Axes, run: Run, names: tuple[str, str], ink: str, line: str) -> None:
    x_P, y_P = (run.curve[name] for name in names)
    shown_P = np.isfinite(x_P) & np.isfinite(y_P)
    marker = "o" if shown_P.sum() < 3 else ""
    axes.plot(x_P[shown_P], y_P[shown_P], color=ink, linestyle=line, marker=marker, linewidth=1.6)
    if names[1] == "loss" and "val/nats_per_target" in run.curve:
        axes.plot(x_P, run.curve["val/nats_per_target"], "x", color=ink, markersize=6, markeredgewidth=1.6)
    if run.switch_step:
        where = np.interp(run.switch_step, run.curve["step"], x_P)
        axes.axvline(float(where), color=ink, linestyle=":", linewidth=1.4)


def _settled(y_P: np.ndarray) -> float:
    """The largest value after the first twentieth of the points: a curve's beginning would flatten the rest."""
    finite = y_P[np.isfinite(y_P)]
    return float(finite[math.ceil(len(finite) / 20) if len(finite) > 2 else 0 :].max())


def _add_bpb_axis(axes: Axes, groups: list[Group]) -> None:
    """A second scale in bits per byte, by the bytes of a token of the training text, where all runs share them."""
    data = [run.result["data"] for group in groups for run in group.runs if "data" in run.result]
    if len({one["fingerprint"] for one in data}) == 1 and "train_table_bytes" in data[0]:
        bpb_per_nat = data[0]["train_tokens"] / data[0]["train_table_bytes"] / math.log(2)
        right = axes.secondary_yaxis("right", functions=(lambda x: x * bpb_per_nat, lambda x: x / bpb_per_nat))
        right.set_ylabel("bits per byte")
        right.spines["right"].set_visible(False)


def _scores_panel(groups: list[Group], against: float | None) -> Panel:
    names = [name for name in SCORES if any(name in run.scores for group in groups for run in group.runs)]
    labels = {"before_quantization": "before\nquantization", "ttt_lr0": "TTT path,\nlearning\nrate 0"}

    def draw(axes: Axes) -> None:
        for index, group in enumerate(groups):
            offset = 0.0 if len(groups) == 1 else 0.5 * (index / (len(groups) - 1) - 0.5)
            for row, name in enumerate(names):
                having = [run.scores[name] for run in group.runs if name in run.scores]
                for one in having:
                    fill = "none" if one["partial"] else colour(index)
                    axes.plot(one["bpb"], row + offset, "o", markersize=6, mfc=fill, mec=colour(index), alpha=0.85)
                if having and len(groups) == 1:
                    mean = float(np.mean([one["bpb"] for one in having]))
                    axes.annotate(f"{mean:.4f}", (mean, row - 0.14), ha="center", va="bottom", color=INK)
        if against is not None:
            axes.axvline(against, color=MUTED, linestyle="--", linewidth=1.0)
        axes.set_yticks(range(len(names)), [labels.get(name, SCORES[name]) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.6)
        axes.margins(x=0.12)
        axes.set_xlabel("bits per byte")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))

    partial = any(score["partial"] for group in groups for run in group.runs for score in run.scores.values())
    note = "Lower is better; one point a run." + (" Hollow: a part of the split." if partial else "")
    note += f" Dashed: {against:g}." if against is not None else ""
    return Panel("scores", "Scores", note, draw)


def _gains(documents: DocumentTable | None) -> tuple[list[str], np.ndarray] | None:
    """Labels of the bins ``[B]`` that hold documents, and the gain of learning in each, ``[B]`` bits per byte."""
    if documents is None or not {"ttt", "ttt_lr0"} <= set(documents.nats):
        return None
    bins_N = np.digitize(documents.targets, BIN_EDGES, right=True) - 1
    gained_N = documents.nats["ttt_lr0"] - documents.nats["ttt"]
    labels, gains = [], []
    for index, low in enumerate(BIN_EDGES):
        here_N = (bins_N == index) & (documents.targets > 0)
        if count := int(documents.bytes[here_N].sum()):
            bound = f"≤ {BIN_EDGES[index + 1]:,}" if index + 1 < len(BIN_EDGES) else f"> {low:,}"
            labels.append(f"{bound}\n({int(here_N.sum()):,})")
            gains.append(float(gained_N[here_N].sum()) / math.log(2) / count)
    return (labels, np.array(gains)) if labels else None


def _gain_panel(groups: list[Group]) -> Panel:
    def draw(axes: Axes) -> None:
        places: dict[str, int] = {}
        lengths = [_gains(run.documents) for group in groups for run in group.runs]
        for label in sorted({label for one in lengths if one for label in one[0]}, key=_bound):
            places[label] = len(places)
        for index, group in enumerate(groups):
            for number, run in enumerate(group.runs):
                if (found := _gains(run.documents)) is not None:
                    x = [places[label] for label in found[0]]
                    line = LINES[number % len(LINES)]
                    axes.plot(x, found[1], color=colour(index), linestyle=line, marker="o", markersize=4)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xticks(range(len(places)), list(places), fontsize="small")
        axes.set_xlabel("targets of a document (number of documents)")
        axes.set_ylabel("bits per byte gained")

    note = "Learning rate 0 less test-time training: above zero, learning from the document's beginning helps."
    return Panel("gain", "Gain of test-time training by length", note, draw)


def _bound(label: str) -> tuple[int, bool, str]:
    sign, number = label.partition("\n")[0].split()
    return int(number.replace(",", "")), sign == ">", label
