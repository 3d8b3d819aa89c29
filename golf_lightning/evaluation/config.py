"""Every number of document test-time training, with its unit."""

import math
from dataclasses import dataclass, field

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.documents import check_part
from golf_lightning.evaluation.slots import WindowPlan
from golf_lightning.model.adapters import AdapterConfig


@dataclass(kw_only=True)
class TTTConfig:
    """How documents are scored and learned from. Defaults are the recipe's, for one large GPU.

    ``slots``, ``rows`` and ``widths`` decide speed and memory and nothing else.

    Args:
        adapters: which adapters a document gets.
        lr: AdamW's learning rate, per chunk; 0 scores with a sliding window and learns nothing.
        beta1: AdamW's decay of the first moment.
        beta2: AdamW's decay of the second moment.
        eps: AdamW's epsilon, added to the root of the second moment.
        weight_decay: decoupled weight decay of the adapters; a step multiplies them by ``1 - lr * weight_decay``.
        chunk: targets scored, then learned from, at a time.
        window: longest context of a chunk with the chunk itself, in tokens; at least ``chunk``.
        slots: documents open at a time.
        rows: most tokens in one forward pass, the knob for memory; at least ``window``.
        widths: number of lengths to which windows are padded; documents of one length run together.
        seed: of the adapters' starting noise, at least 0.
        max_documents: score only the first documents of the split, and say so; null for all.
        fraction: share of the split's documents to score, from its start, rounded up.
        budget_seconds: evaluation clock; a warning tells early when scoring will not end in time; null for none.
    """

    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    lr: float = 1e-4
    beta1: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-10
    weight_decay: float = 0.5
    chunk: int = 32
    window: int = 2048
    slots: int = 64
    rows: int = 131_072
    widths: int = 4
    seed: int = 0
    max_documents: int | None = None
    fraction: float = 1.0
    budget_seconds: float | None = 600.0

    def __post_init__(self) -> None:
        # A NaN fails every comparison, so each check asks for what is right.
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GolfError(f"{name} is {getattr(self, name)}; it must be 0 or more, and finite.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise GolfError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if not 0 < self.eps < math.inf:
            raise GolfError(f"eps is {self.eps}; it must be above 0.")
        for name in ("chunk", "slots", "widths"):
            if getattr(self, name) < 1:
                raise GolfError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.window < self.chunk:
            raise GolfError(f"window is {self.window}, shorter than a chunk of {self.chunk}; choose a longer window.")
        if self.rows < self.window:
            raise GolfError(f"rows is {self.rows}, too few for one window of {self.window}; choose at least that many.")
        if not 0 <= self.seed < 2**63:
            raise GolfError(f"seed is {self.seed}; choose a number from 0 to 2^63 - 1.")
        check_part(self.max_documents, self.fraction)
        if self.budget_seconds is not None and not self.budget_seconds > 0:
            raise GolfError(f"budget_seconds is {self.budget_seconds}; it must be above 0, or null for no warning.")

    @property
    def plan(self) -> WindowPlan:
        """How documents are cut."""
        return WindowPlan(chunk=self.chunk, window=self.window, widths=self.widths)
