"""A callback that traces a few steps of a run and writes down where the host waited for the device."""

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
            of work that the device still had queued when the host went on.
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
        inside = [event for event in events if event.get("ph") == "X" and begin <= event["ts"] <= end]
        runtime = [event for event in inside if event.get("cat") in ("cuda_runtime", "cuda_driver")]
        waits = [event for event in runtime if event["name"].startswith(WAITS) and "Async" not in event["name"]]
        launched = {
            event["args"]["correlation"]: event["ts"]
            for event in events
            if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event["args"]
        }
        work = [
            (launched[event["args"]["correlation"]], event["ts"] + event["dur"])
            for event in events
            if event.get("cat") in ("kernel", "gpu_memcpy") and event["args"].get("correlation") in launched
        ]
        calls: dict[str, int] = {}
        for event in waits:
            calls[event["name"]] = calls.get(event["name"], 0) + 1
        queued = []
        for event in waits:
            over = event["ts"] + event["dur"]
            ends = [finish for start, finish in work if start < over]
            queued.append(max(ends, default=over) - over)
        return {"steps": self.last - self.first, "calls": calls, "queued_us": queued, "kernels": len(work)}
