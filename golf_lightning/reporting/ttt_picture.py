"""A picture of what test-time training does: bits by position, gain and seconds by length of document."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from golf_lightning.evaluation.breakdown import EDGES, Breakdown
from golf_lightning.files import write_whole

# B bins


def draw_ttt(path: str | Path, adapted: Breakdown, plain: Breakdown | None, *, title: str = "") -> None:
    """Write the picture as PNG, whole or not at all.

    Args:
        path: the file.
        adapted: scores with adaptation.
        plain: the same documents with learning rate 0; without it there is no gain to show.
        title: line above the picture.

    Raises:
        GolfError: the file cannot be written.
    """
    # Drawn without pyplot, which keeps global state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    position, gain, seconds = figure.subplots(1, 3)
    labels = [f"{low:,}" for low in EDGES]
    for breakdown, name in ((plain, "learning rate 0"), (adapted, "adapted")):
        if breakdown is not None:
            bits = _ratio(breakdown.position_nats, breakdown.position_bytes * math.log(2))
            position.plot(labels, bits, marker="o", label=name)
    position.set(xlabel="position in the document, targets from", ylabel="bits per byte", title="by position")
    position.legend()
    if plain is not None:
        saved = _ratio(plain.length_nats - adapted.length_nats, adapted.length_bytes * math.log(2))
        gain.bar(labels, np.nan_to_num(saved))
    gain.set(xlabel="length of the document, targets from", ylabel="bits per byte saved", title="gain of adaptation")
    seconds.bar(labels, adapted.length_seconds)
    seconds.set(xlabel="length of the document, targets from", ylabel="seconds of scoring", title="time")
    for axes in (position, gain, seconds):
        axes.tick_params(axis="x", rotation=60)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """NaN where nothing was counted, which leaves a gap in a curve."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
