"""Every number of document test-time training, with its unit."""

import math
from dataclasses import dataclass, field
from typing import Literal

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.documents import Order, check_part
from golf_lightning.model.adapters import AdapterConfig

Mode = Literal["exact", "cached"]


@dataclass(kw_only=True)
class TTTConfig:
    """How documents are scored and learned from. Defaults are the recipe's, for one large GPU.

    ``slots`` and ``rows`` decide speed and memory and nothing else.

    Args:
        mode: exact runs a chunk's whole window with the adapters of the moment; cached runs the chunk alone and keeps
            the keys and values of what came before as they were when it was scored, at a fraction of the time.
        adapters: which adapters a document gets.
        lr: AdamW's learning rate, per chunk; 0 scores with a sliding window and learns nothing.
        beta1: AdamW's decay of the first moment.
        beta2: AdamW's decay of the second moment.
        eps: AdamW's epsilon, added to the root of the second moment.
        weight_decay: decoupled weight decay of the adapters; a step multiplies them by ``1 - lr * weight_decay``.
        chunk: targets scored, then learned from, at a time.
        window: longest context of a chunk with the chunk itself, in tokens; at least ``chunk``.
        steps: gradient steps on each chunk, after it is scored.
        sgd_documents: after so many documents are scored, the model itself takes one pass of SGD over them, in stream
            order; this makes the scores of later documents depend on the order of documents. 0 for none.
        sgd_lr: learning rate of that pass.
        slots: documents open at a time, the knob for memory: 84 MB each at full size, 120 MB in cached mode; a
            CPU takes at most 32.
        rows: most tokens in one forward pass; at least ``window``. A CPU takes at most 8,192, or a window.
        order: in which documents enter: as they come (stream); longest first among 4,096 (window) or all (sorted), both
            objected to in the contest because they look at lengths ahead. Scores are the same.
        seed: of the adapters' starting noise, at least 0.
        max_documents: score only the first documents of the split, and say so; null for all.
        fraction: share of the split's documents to score, from its start, rounded up.
        budget_seconds: evaluation clock; a warning tells early when scoring will not end in time; null for none.
    """

    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    mode: Mode = "cached"
    lr: float = 1e-4
    beta1: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-10
    weight_decay: float = 0.5
    chunk: int = 16
    window: int = 2048
    steps: int = 1
    sgd_documents: int = 0
    sgd_lr: float = 1e-3
    slots: int = 256
    rows: int = 32_768
    order: Order = "stream"
    seed: int = 0
    max_documents: int | None = None
    fraction: float = 1.0
    budget_seconds: float | None = 600.0

    def __post_init__(self) -> None:
        # A NaN fails every comparison, so each check asks for what is right.
        if self.mode not in ("exact", "cached"):
            raise GolfError(f"mode is {self.mode!r}; choose exact or cached.")
        if self.order not in ("stream", "window", "sorted"):
            raise GolfError(f"order is {self.order!r}; choose stream, window or sorted.")
        for name in ("lr", "weight_decay", "sgd_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GolfError(f"{name} is {getattr(self, name)}; it must be 0 or more, and finite.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise GolfError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if not 0 < self.eps < math.inf:
            raise GolfError(f"eps is {self.eps}; it must be above 0.")
        for name in ("chunk", "steps", "slots"):
            if getattr(self, name) < 1:
                raise GolfError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.window < self.chunk:
            raise GolfError(f"window is {self.window}, shorter than a chunk of {self.chunk}; choose a longer window.")
        if self.rows < self.window:
            raise GolfError(f"rows is {self.rows}, too few for one window of {self.window}; choose at least that many.")
        if self.sgd_documents < 0:
            raise GolfError(f"sgd_documents is {self.sgd_documents}; it must be at least 1, or 0 for no global phase.")
        if self.sgd_documents and self.order != "stream":
            raise GolfError(f"sgd_documents needs the documents in stream order, not order {self.order}.")
        if not 0 <= self.seed < 2**63:
            raise GolfError(f"seed is {self.seed}; choose a number from 0 to 2^63 - 1.")
        check_part(self.max_documents, self.fraction)
        if self.budget_seconds is not None and not self.budget_seconds > 0:
            raise GolfError(f"budget_seconds is {self.budget_seconds}; it must be above 0, or null for no warning.")
