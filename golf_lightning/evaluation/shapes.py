"""The few fixed shapes of a pass of test-time training."""

from dataclasses import dataclass, replace

import torch

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.slots import WindowPlan

MOST_TOGETHER = 256
"""Documents of a pass: FlashAttention-4 has one kernel for up to 256 segments."""

CPU_SLOTS, CPU_ROWS = 32, 8192
"""Most slots and rows on a CPU. A recipe's are made for a GPU's memory: 256 slots at full size took more than 24 GB."""


def bounded(config: TTTConfig, *, documents: int, device: torch.device) -> TTTConfig:
    """The settings with no more slots and rows than so many documents can use, and on a CPU its memory holds.

    A GPU warms up for all slots and rows that there are, which takes seconds. No score changes beyond rounding.
    """
    most_slots, most_rows = (CPU_SLOTS, CPU_ROWS) if device.type == "cpu" else (config.slots, config.rows)
    slots = min(config.slots, most_slots, max(documents, 1))
    rows = min(config.rows, most_rows, slots * window_plan(config).window_rows)
    return replace(config, slots=slots, rows=max(rows, config.window))


def window_plan(config: TTTConfig) -> WindowPlan:
    """How documents are cut; the reference gathers matrices by tiles, and many small ones take memory."""
    cached = config.mode == "cached"
    return WindowPlan(chunk=config.chunk, window=config.window, cached=cached, tile=8 if cached else 16)


@dataclass(frozen=True, slots=True)
class PassShape:
    """Rows and documents that a pass has room for."""

    rows: int
    documents: int

    def holds(self, needed: "PassShape") -> bool:
        """Whether a pass that needs so much fits."""
        return needed.rows <= self.rows and needed.documents <= self.documents


def pass_shapes(config: TTTConfig, plan: WindowPlan) -> list[PassShape]:
    """From the largest to the smallest, rows halved from one to the next.

    Every document that a pass has room for costs a chunk's rows at the head, so that windows, which are many rows of
    few documents, have shapes for fewer documents too.
    """
    together, shapes = min(config.slots, MOST_TOGETHER), list[PassShape]()
    if plan.cached:
        together = min(together, max(config.rows // plan.chunk_rows, 1))
        # Kernels are compiled anew for rows that are no multiple of 16.
        while together >= 1 and (not shapes or together * plan.chunk_rows % 16 == 0):
            shapes.append(PassShape(together * plan.chunk_rows, together))
            together //= 2
        return shapes
    rows = max(config.rows // plan.tile * plan.tile, plan.window_rows)
    while rows >= plan.window_rows:
        for documents in (together, *(fewer for fewer in (64, 8) if fewer < together)):
            if documents == together or rows <= documents * plan.window_rows:
                shapes.append(PassShape(rows, min(documents, rows // plan.tile)))
        rows = rows // 2 // plan.tile * plan.tile
    return list(dict.fromkeys(shapes))
