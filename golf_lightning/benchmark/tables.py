"""What a benchmark shows: tables, a comparison of two runs, and a bar chart of where a micro-batch goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console
from rich.table import Table

from golf_lightning.errors import GolfError
from golf_lightning.files import read_json, write_whole

RATES = {
    "tokens_per_s": ("tokens/s", "{:,.0f}"),
    "ms_per_step": ("ms a step", "{:.1f}"),
    "ms_forward": ("ms a micro-batch, forward", "{:.2f}"),
    "ms_backward": ("ms a micro-batch, backward", "{:.2f}"),
    "ms_optimizer": ("ms a step, optimizer and average", "{:.2f}"),
    "ms_gaps": ("ms a micro-batch between kernels", "{:.2f}"),
    "host_ms": ("ms of the host to launch a micro-batch", "{:.2f}"),
    "mfu": ("model FLOP utilization", "{:.1%}"),
    "peak_memory_gb": ("peak memory, GB", "{:.1f}"),
    "watts": ("power of the board, W", "{:.0f}"),
    "joules_per_step": ("energy of a step, J", "{:.0f}"),
    "mhz": ("clock of the multiprocessors, MHz", "{:.0f}"),
    "first_s": ("first micro-batch with compilation, s", "{:.1f}"),
    "recompiles": ("recompiles in the timed steps", "{:d}"),
    "lightning_ms_per_step": ("ms a step in Lightning", "{:.1f}"),
    "lightning_ratio": ("Lightning over bare loop", "{:.4f}"),
}
"""Figures of a phase in the order shown: key, label, format."""


CHART_SUFFIXES = (".png", ".svg")
"""Endings of a bar chart's file."""
POWER_BOUND = 0.95
"""Share of the power limit from which a board counts as held back by it."""


def phase_name(phase: dict[str, Any]) -> str:
    """Heading of a phase's column."""
    return "with recurrence" if phase["recurrent"] else "before recurrence"


def print_result(result: dict[str, Any], console: Console) -> None:
    """Both phases side by side, then the parts of a micro-batch with their floors."""
    phases = result["phases"]
    table = Table("", *(phase_name(phase) for phase in phases), title=f"{result['machine']}, torch {result['torch']}")
    for key, (label, form) in RATES.items():
        values = [phase.get(key) for phase in phases]
        if any(value is not None for value in values):
            table.add_row(label, *("" if value is None else form.format(value) for value in values))
    console.print(table)
    if note := power_note(phases):
        console.print(note, highlight=False)
    columns = [text for phase in phases for text in (phase_name(phase), "floor")]
    parts = Table("ms a micro-batch", *columns)
    for part in phases[0]["ms_parts"]:
        cells = [cell for phase in phases for cell in (phase["ms_parts"][part], phase["ms_floors"][part])]
        parts.add_row(part, *("" if cell is None else f"{cell:.2f}" for cell in cells))
    totals = [
        total
        for phase in phases
        for total in (sum(phase["ms_parts"].values()), sum(v for v in phase["ms_floors"].values() if v is not None))
    ]
    parts.add_row("sum", *(f"{total:.2f}" for total in totals))
    console.print(parts)


def power_note(phases: list[dict[str, Any]]) -> str | None:
    """A sentence if a phase was held back by the board's power limit, else ``None``."""
    known = [phase for phase in phases if phase.get("watts") and phase["watts_limit"]]
    held = [phase for phase in known if phase["watts"] > POWER_BOUND * phase["watts_limit"]]
    if not held:
        return None
    watts, limit = (max(phase[key] for phase in held) for key in ("watts", "watts_limit"))
    clocks = [f"{phase['mhz']:.0f} of {phase['mhz_limit']} MHz" for phase in held if phase["mhz"]]
    return (
        f"The board was at its power limit ({watts:.0f} of {limit:.0f} W"
        + "".join(f", {clock}" for clock in clocks)
        + "): compare energy too, since a change that saves time alone gains little there."
    )


def read_result(path: Path) -> dict[str, Any]:
    """A result that ``bench --json`` wrote earlier.

    Raises:
        GolfError: the file is missing or is something else.
    """
    result = read_json(path) if not path.is_dir() else None
    if not _is_result(result):
        raise GolfError(f"{path} is no result of a benchmark; give a file that `bench --json` has written.")
    return result


def _is_result(value: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(value, dict) or not isinstance(value.get("machine"), str):
        return False
    phases = value.get("phases")
    return isinstance(phases, list) and all(
        isinstance(phase, dict)
        and isinstance(phase.get("recurrent"), bool)
        and all(isinstance(phase.get(key), int | float | None) for key in RATES)
        for phase in phases
    )


def require_phases(result: dict[str, Any], recurrences: Sequence[bool]) -> None:
    """Check that a result can be compared with one of these phases.

    Args:
        result: an earlier result.
        recurrences: whether depth recurrence is on, by phase.

    Raises:
        GolfError: it has other phases.
    """
    if [phase["recurrent"] for phase in result["phases"]] != list(recurrences):
        raise GolfError("The two benchmarks have different phases; run both with the same options.")


def print_ratios(result: dict[str, Any], other: dict[str, Any], console: Console) -> None:
    """This result over another one with the same phases."""
    pairs = list(zip(result["phases"], other["phases"], strict=True))
    if result["machine"] != other["machine"]:
        console.print(f"[bold]different machines:[/] {result['machine']} and {other['machine']}")
    table = Table("this run over the other", *(phase_name(phase) for phase, _ in pairs))
    for key, (label, _) in RATES.items():
        ratios = [mine[key] / theirs[key] if mine.get(key) and theirs.get(key) else None for mine, theirs in pairs]
        if any(ratio is not None for ratio in ratios):
            table.add_row(label, *("" if ratio is None else f"{ratio:.3f}" for ratio in ratios))
    console.print(table)


def write_chart(result: dict[str, Any], path: Path) -> None:
    """A bar for each part of a micro-batch beside its floor, as PNG or SVG by the file's ending."""
    from matplotlib.figure import Figure

    phases = result["phases"]
    figure = Figure(figsize=(5 * len(phases), 3.4), layout="constrained")
    for index, phase in enumerate(phases):
        axes = figure.add_subplot(1, len(phases), index + 1)
        names = list(phase["ms_parts"])
        rows = range(len(names))
        axes.barh(rows, [phase["ms_parts"][name] for name in names], color="#4477aa", label="measured")
        floors = [phase["ms_floors"][name] or 0.0 for name in names]
        axes.barh(rows, floors, height=0.35, color="#ddaa33", label="floor")
        for row, name in enumerate(names):
            axes.text(max(phase["ms_parts"][name], floors[row]), row, f" {phase['ms_parts'][name]:.1f}", va="center")
        axes.set_yticks(rows, names if index == 0 else [""] * len(names))
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("ms a micro-batch")
        axes.set_title(f"{phase_name(phase)}: {phase['tokens_per_s']:,.0f} tokens/s", fontsize=10)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    with write_whole(path) as file:
        figure.savefig(file, format=path.suffix.lstrip("."), dpi=150)
