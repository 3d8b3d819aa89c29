"""A picture of an artifact: where its bytes go, how its codes are distributed, and where more bits would be spent."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from golf_lightning.compression.quantize import ROLE_OF, ROLES
from golf_lightning.files import write_whole
from golf_lightning.reporting.artifact_facts import ArtifactFacts, BankCounts

COLORS = {"attention": "#3b6fb6", "mlp": "#d9822b", "embedding": "#4a9a5b", "rest": "#8a8f98"}
SHADES = {"qo": "#3b6fb6", "kv": "#7fa6d8", "up": "#d9822b", "down": "#eeb57c", "embedding": "#4a9a5b"}
MATRICES = {
    "Q": ("qo", 0, "-"), "K": ("kv", 0, "-"), "V": ("kv", 1, "--"), "O": ("qo", 1, "--"),
    "up": ("up", 0, "-"), "down": ("down", 0, "-"),
}  # fmt: skip
"""Lines of the lowest panel: the bank, which of its halves, and how it is drawn."""
SMALLEST_RANGE = 0.05
"""Least height of the lowest panel, in bits."""


def draw(path: str | Path, facts: ArtifactFacts, counts: dict[str, BankCounts], *, title: str) -> None:
    """Draw an artifact into a PNG file.

    Args:
        path: the file to write.
        facts: its figures.
        counts: its codes, by bank.
        title: what to write above.

    Raises:
        GolfError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 9.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 3, height_ratios=(1.25, 3, 2.4))
    figure.suptitle(f"{title}: {facts.file_bytes:,} bytes, {facts.parameters:,} parameters, coder {facts.coder}")
    _bytes_panel(figure.add_subplot(grid[0, :]), facts)
    for column, role in enumerate(ROLES):
        banks = [bank for name, bank in counts.items() if ROLE_OF[name] == role]
        _codes_panel(figure.add_subplot(grid[1, column]), role, banks, facts)
    _layers_panel(figure.add_subplot(grid[2, :]), facts, counts)
    with write_whole(path) as file:
        figure.savefig(file, format="png")


def _bytes_panel(axes: Axes, facts: ArtifactFacts) -> None:
    """One bar of the file's length, cut into its sections."""
    parts = [(name, bank.bytes, SHADES[name.partition("+")[0]]) for name, bank in facts.banks.items()]
    order = list(SHADES)
    parts.sort(key=lambda part: order.index(part[0].partition("+")[0]))
    parts += [(name, facts.bytes[name], COLORS["rest"]) for name in ("scales", "vectors", "header")]
    left = 0
    for name, size, color in parts:
        axes.barh(0, size, left=left, color=color, edgecolor="white", linewidth=0.8)
        if size > 0.05 * facts.file_bytes:
            bits = f"\n{facts.banks[name].bits_per_weight:.3f} bits" if name in facts.banks else ""
            text = f"{name}\n{_short(size)}\n{100 * size / facts.file_bytes:.1f}%{bits}"
            dark = color in COLORS.values()
            axes.text(
                left + size / 2, 0, text, ha="center", va="center", fontsize=9, color="white" if dark else "black"
            )
        left += size
    rest = ", ".join(f"{name} {_short(facts.bytes[name])}" for name in ("scales", "vectors", "header"))
    axes.set_title(f"Bytes in the file, and bits per weight.  Grey: {rest}", loc="left", fontsize=10)
    axes.set_xlim(0, facts.file_bytes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / 1e6:g} MB" if size >= 1e6 else _short(size)))
    axes.set_yticks([])
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)


def _codes_panel(axes: Axes, role: str, banks: list[BankCounts], facts: ArtifactFacts) -> None:
    """How often each code occurs, on a logarithmic scale, between the clip points."""
    largest = max(bank.largest for bank in banks)
    weights = sum(int(bank.counts_NRV.sum()) for bank in banks)
    share, normal = np.zeros(2 * largest + 1), np.zeros(2 * largest + 1)
    for bank in banks:
        own = int(bank.counts_NRV.sum())
        inner = slice(largest - bank.largest, largest + bank.largest + 1)
        share[inner] += bank.counts_NRV.sum((0, 1)).numpy() / weights
        normal[inner] += bank.expected_V().numpy() * own / weights
    codes = np.arange(-largest, largest + 1)
    axes.bar(codes, share, width=1.0, color=COLORS[role], edgecolor="white", linewidth=0.3 if largest < 64 else 0.0)
    axes.plot(codes, normal, color="black", linewidth=1.0, label="normal, each row its own spread")
    axes.set_yscale("log")
    axes.set_ylim(0.5 / weights, 2.0)
    axes.set_xlim(-1.12 * largest, 1.12 * largest)
    own_facts = facts.roles[role]
    for place in (-largest, largest):
        axes.axvline(place, color="#b3261e", linewidth=1.2, label="clip point" if place > 0 else None)
    axes.set_title(
        f"{role}: int{own_facts.bits}, clip at {own_facts.clip_sd:.1f} sd, {_percent(own_facts.clipped)} clipped\n"
        f"{own_facts.bits_per_weight:.3f} bits each, ideal {own_facts.row_normal_bits:.3f}",
        loc="left",
        fontsize=10,
    )
    axes.set_xlabel("code (weight over its row's scale)")
    if role == ROLES[0]:
        axes.set_ylabel("share of the weights")
    axes.legend(loc="upper center", fontsize=7, framealpha=1.0, edgecolor="none", handlelength=1.2)
    _bare(axes)


def _layers_panel(axes: Axes, facts: ArtifactFacts, counts: dict[str, BankCounts]) -> None:
    """Ideal bits per weight of each kind of matrix, layer by layer."""
    layers = int(facts.model["layers"])
    for name, (bank_name, half, style) in MATRICES.items():
        bank = counts[bank_name]
        bits_N = (bank.row_normal_bits().sum(-1) / bank.counts_NRV.sum((-1, -2))).numpy()
        color = SHADES[bank_name]
        axes.plot(
            range(layers), bits_N[half * layers : (half + 1) * layers], style, color=color, marker="o", label=name
        )
    axes.set_title("Ideal bits per weight, by layer", loc="left", fontsize=10)
    low, high = axes.get_ylim()
    # Differences that do not matter must not fill the panel.
    room = max(0.0, SMALLEST_RANGE - (high - low)) / 2
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel("layer")
    axes.set_ylabel("bits")
    axes.set_xticks(range(layers))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(ncols=6, fontsize=8, frameon=False, handlelength=3.5)
    _bare(axes)


def _bare(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(size: float) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} KB" if size >= 1e3 else f"{size:.0f} B"


def _percent(share: float) -> str:
    return "none" if share == 0 else f"{100 * share:.2g}%"
