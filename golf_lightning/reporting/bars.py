"""What a panel is, and those of stacked bars: where the seconds and the bytes went."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from golf_lightning.reporting.runs import Run
from golf_lightning.reporting.style import INK, STACK

ROLES = ("mlp", "attention", "embedding", "scales", "vectors", "header")
LONGEST_NAME = 18
"""Letters of a run's name beside a bar; the legend has the whole name."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of the report.

    Attributes:
        key: short name.
        title: what is shown, with its unit.
        note: how to read it.
        draw: draws it.
    """

    key: str
    title: str
    note: str
    draw: Callable[[Axes], None]


def ledger_panel(runs: list[Run]) -> Panel:
    """Seconds by stage."""
    return Panel(
        "ledger",
        "Where the seconds went",
        "Wall clock by stage, in the order in which stages began.",
        lambda axes: _stack(axes, runs, [run.result["ledger"] for run in runs], "seconds"),
    )


def bytes_by_role(run: Run) -> dict[str, float]:
    """Bytes of the artifact by role, and of the code; empty where nothing was exported."""
    sizes = run.result.get("export", {}).get("bytes_by_role", {})
    named = {name: sizes[name] for name in dict.fromkeys((*ROLES, *sizes)) if name in sizes}
    code = run.result.get("artifact", {}).get("code_bytes")
    return named | ({"code": code} if named and code else {})


def bytes_panel(runs: list[Run]) -> Panel:
    """Bytes by role, and the limit where it is near."""
    limits = [run.result["artifact"]["limit_bytes"] for run in runs if "limit_bytes" in run.result.get("artifact", {})]
    largest = max(sum(bytes_by_role(run).values()) for run in runs)
    limit = max(limits) if limits and largest > 0.5 * max(limits) else None

    def draw(axes: Axes) -> None:
        _stack(axes, runs, [bytes_by_role(run) for run in runs], "bytes")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if limit:
            axes.axvline(limit, color=INK, linestyle="--", linewidth=1.2)

    note = "What each role takes in the artifact." + (f" Dashed: the limit of {limit:,} bytes." if limit else "")
    return Panel("bytes", "Bytes by role", note, draw)


def _short(name: str) -> str:
    """A name without its middle, if it is long: runs mostly differ at the end."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def _stack(axes: Axes, runs: list[Run], parts: list[dict[str, float]], unit: str) -> None:
    """One horizontal bar a run; parts are told apart by colour and, where they are large enough, by name."""
    order = list(dict.fromkeys(name for one in parts for name in one))
    widest = max(sum(one.values()) for one in parts) or 1.0
    for row, one in enumerate(parts):
        start = 0.0
        for name, value in one.items():
            shade = STACK[order.index(name) % len(STACK)]
            axes.barh(row, value, left=start, color=shade, height=0.55, label=name if row == 0 else None)
            start += value
    totals: dict[str, float] = {name: max(one.get(name, 0.0) for one in parts) for name in order}
    for name in order:
        if totals[name] and name not in parts[0]:
            axes.barh(0, 0, color=STACK[order.index(name) % len(STACK)], label=name)
    axes.set_yticks(range(len(runs)), [_short(run.name) for run in runs])
    axes.set_ylim(max(len(runs), 3) / 2 + len(runs) / 2 - 0.5, len(runs) / 2 - max(len(runs), 3) / 2 - 0.5)
    axes.set_xlim(0, widest * 1.03)
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=3, frameon=False, fontsize=9.5)
