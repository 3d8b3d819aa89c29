"""Colours and sizes of the report's pictures.

Pictures are drawn in the light colours; in the page each of them is a CSS variable with a second value for the dark.
"""

import io
import re
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1c2430", "#5d6876", "#dde2e8", "#ffffff"
SERIES = ("#0b6bb8", "#c8500a", "#0a8a63", "#a6418f", "#7a6a00", "#5a4fcf", "#b3261e", "#4a5563")
STACK = (
    "#3b78b8",
    "#e08b3e",
    "#4fa37a",
    "#c2607f",
    "#8b79c9",
    "#b8a13a",
    "#5fa8b8",
    "#a3705a",
    "#88939f",
    "#d17fb5",
    "#7a9a45",
    "#5a6ea8",
    "#c45a4a",
    "#2f4858",
)

DARK = {
    INK: "#e8edf3",
    MUTED: "#a2adba",
    GRID: "#313b47",
    PAPER: "#161b22",
    **dict(
        zip(
            SERIES,
            ("#5cb3ff", "#ff9a57", "#3fd6a0", "#ee92d8", "#dcc94a", "#a9a1ff", "#ff8a80", "#b7c2cf"),
            strict=True,
        )
    ),
    **{shade: shade for shade in STACK},
}
"""The dark value of every light colour."""

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    **{shade: f"--series-{index}" for index, shade in enumerate(SERIES)},
    **{shade: f"--stack-{index}" for index, shade in enumerate(STACK)},
}
"""CSS variables that stand for the colours in the page."""

RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    # Text stays text: small, searchable, and in the reader's font.
    "svg.fonttype": "none",
}


def svg(draw: Callable[[Axes], None], label: str, name: str, size: tuple[float, float] = (5.2, 3.5)) -> str:
    """One picture as an SVG element whose colours are CSS variables and whose width is that of its place.

    Args:
        draw: draws into an axes.
        label: what the picture shows, for readers who do not see it.
        name: unique in the page; keeps the pictures' inner names apart.
        size: width and height in inches of 72 points.
    """
    settings: Any = {**RC, "svg.hashsalt": name}
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        # Without a date equal runs give equal pages.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for shade, variable in VARIABLES.items():
        text = text.replace(shade, f"var({variable})")
    for quote in ('id="', "url(#", 'href="#'):
        text = text.replace(quote, f"{quote}{name}-")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib gives every picture a viewBox"
    return re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{label}">', text, count=1)


def css_variables(dark: bool) -> str:
    """Declarations of all colours."""
    return " ".join(f"{variable}: {DARK[shade] if dark else shade};" for shade, variable in VARIABLES.items())
