"""A callback that traces a few steps of a run: where the host waited for the device, and what communication cost.

    python -m golf_lightning fit ... --trainer.callbacks+=steady_trace.SteadyTrace --trainer.callbacks.out steady.json

with this folder on PYTHONPATH.
"""

import collections
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaStreamWaitValue")
MARK = "steady steps"


class SteadyTrace(pl.Callback):
    """Traces the optimizer steps ``first`` to ``last`` of rank 0.

    Args:
        out: the JSON file to write: steps, calls that make the host wait, by name, and for each wait the microseconds
            of work that the device still had queued when the host went on; milliseconds of a step, of NCCL's kernels
            in it, and of the time in which nothing but these ran.
        first: first step to trace.
        last: last step to trace.
    """

    def __init__(self, out: str, first: int = 8, last: int = 11) -> None:
        self.out, self.first, self.last = Path(out), first, last
        self._profile: Any = None
        self._range: Any = None

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.first and self._profile is None and trainer.is_global_zero:
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            self._profile = torch.profiler.profile(activities=activities)
            self._profile.__enter__()
        if trainer.global_step == self.first + 1 and self._range is None and self._profile is not None:
            # Starting the profiler waits for the device; the queue is full again after a step.
            self._range = torch.profiler.record_function(MARK)
            self._range.__enter__()

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if self._range is not None and trainer.global_step == self.last + 1:
            self._range.__exit__(None, None, None)
            self._profile.__exit__(None, None, None)
            trace = self.out.with_suffix(".trace.json")
            self._profile.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
            trace.unlink()
            self.out.write_text(json.dumps(self._summary(events), indent=2))
            self._profile = self._range = None
            self.first = -2

    def _summary(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        mark = next(event for event in events if event.get("name") == MARK and event.get("cat") == "user_annotation")
        begin, end = mark["ts"], mark["ts"] + mark["dur"]
        calls = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
        waits = [event for event in calls if begin <= event["ts"] <= end and _is_wait(event["name"])]
        launched = {event["args"]["correlation"]: event["ts"] for event in calls if "correlation" in event["args"]}
        work = [
            (launched[event["args"]["correlation"]], event)
            for event in events
            if event.get("cat") in ("kernel", "gpu_memcpy") and event["args"].get("correlation") in launched
        ]
        queued = []
        for wait in waits:
            over = wait["ts"] + wait["dur"]
            ends = [event["ts"] + event["dur"] for start, event in work if start < over]
            queued.append(max(ends, default=over) - over)
        steps = self.last - self.first
        return {
            "steps": steps,
            "calls": dict(collections.Counter(wait["name"] for wait in waits)),
            "queued_us": queued,
            "kernels": len(work),
            **_communication([event for start, event in work if begin <= start <= end], steps),
        }


def _is_wait(name: str) -> bool:
    return name.startswith(WAITS) and "Async" not in name


def _communication(work: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Milliseconds a step: all of it, NCCL's kernels, and what is left of these beside all other work."""
    nccl = _union([event for event in work if event["name"].startswith("nccl")])
    rest = _union([event for event in work if not event["name"].startswith("nccl")])
    both = _union(work)
    scale = 1e-3 / steps
    whole = max((last for _, last in both), default=0.0) - min((first for first, _ in both), default=0.0)
    return {
        "step_ms": whole * scale,
        "nccl_ms": _length(nccl) * scale,
        "nccl_alone_ms": (_length(both) - _length(rest)) * scale,
    }


def _union(work: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """The times in which any of the kernels ran, as disjoint intervals in order."""
    merged: list[tuple[float, float]] = []
    for first, last in sorted((event["ts"], event["ts"] + event["dur"]) for event in work):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _length(intervals: list[tuple[float, float]]) -> float:
    return sum(last - first for first, last in intervals)
