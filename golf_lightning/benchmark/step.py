"""The optimizer step by itself, without Lightning, and a clock for its parts."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from golf_lightning.data.batch import IGNORED, PackedBatch
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.muon import MuonAdamW

AVERAGE_WEIGHT = 0.0035
"""Share of the new weights in the average: what a long run's EMA has."""


class Clock:
    """Times parts of a step without making the host wait: events on a GPU, the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """End the part ``part``, which began at the last mark."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((part, event))
        else:
            self.marks.append((part, time.perf_counter()))

    def milliseconds(self) -> dict[str, float]:
        """Sum by part over everything marked so far."""
        if self.cuda:
            torch.cuda.synchronize()
        parts: dict[str, float] = {}
        for (_, start), (part, stop) in pairwise(self.marks):
            spent = start.elapsed_time(stop) if self.cuda else (stop - start) * 1e3
            parts[part] = parts.get(part, 0.0) + spent
        return parts


class Step:
    """One optimizer step of the recipe on one device.

    Args:
        model: on its device, compiled or not.
        batches: on the same device; used in turn.
        accumulate: micro-batches of a step.
        optimizer: of the configuration that is timed.
    """

    def __init__(self, model: GPT, batches: list[PackedBatch], accumulate: int, optimizer: OptimizerConfig) -> None:
        self.model, self.batches, self.accumulate = model, batches, accumulate
        self.optimizer = MuonAdamW(model.named_parameters(), optimizer)
        self.average = [parameter.detach().clone() for parameter in model.parameters()]
        self._next = 0

    @property
    def device(self) -> torch.device:
        """Where the step runs."""
        return self.model.embedding.device

    def micro_batch(self, mark: Callable[[str], None] = lambda _: None) -> Tensor:
        """Forward and backward of the next micro-batch; returns the detached loss."""
        batch = self.batches[self._next % len(self.batches)]
        self._next += 1
        nll_T = self.model(batch.tokens, batch.targets, batch.cu_seqlens)
        loss = nll_T.sum() / (batch.targets != IGNORED).sum()
        mark("forward")
        (loss / self.accumulate).backward()
        mark("backward")
        return loss.detach()

    def run(self, mark: Callable[[str], None] = lambda _: None) -> Tensor:
        """One step; returns the last micro-batch's loss without waiting for it."""
        mark("other")
        for _ in range(self.accumulate):
            loss = self.micro_batch(mark)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, list(self.model.parameters()), AVERAGE_WEIGHT)
        mark("optimizer")
        return loss
