"""One micro-batch under the profiler, its kernels summed by part."""

import os
import re
from dataclasses import dataclass

import torch

from golf_lightning.benchmark.floors import PARTS
from golf_lightning.benchmark.step import Step

PATTERNS = (
    ("attention", r"flash|attn|attention|::_?segments"),
    ("loss", r"_loss_kernel|cross_entropy|nll_loss"),
    ("heads", r"_prepare_(backward_)?kernel|prepare_heads(_backward)?$"),
    ("XSA", r"_exclude_(backward_)?kernel|exclude_self(_backward)?$"),
    ("layer entry", r"^_(mix|norm)_(backward_)?kernel|golf::(mix|norm)"),
    (
        "products",
        r"nvjet|gemm|cutlass|cublas|splitK|_hidden_kernel|_product_kernel|aten::(addmm|mm|bmm|linear)$|mlp_hidden",
    ),
)
"""Which part a kernel, or on a CPU an operation, belongs to: the first pattern found in its name."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Kernels of one micro-batch.

    Attributes:
        parts: milliseconds by part, of the parts that could be told apart.
        kernels: name, milliseconds and calls of each kernel, longest first.
        busy_ms: time in which at least one kernel ran.
        span_ms: from the first kernel's start to the last one's end, in a steady stream of micro-batches; less
            ``busy_ms``, that is the gaps between kernels. ``None`` on a CPU.
    """

    parts: dict[str, float]
    kernels: list[tuple[str, float, int]]
    busy_ms: float
    span_ms: float | None

    def text(self) -> str:
        """The table of kernels."""
        calls = sum(count for _, _, count in self.kernels)
        lines = [f"{self.busy_ms:.2f} ms in {calls} calls"]
        return "\n".join(lines + [f"{ms:9.3f} ms {count:5d} x  {name[:150]}" for name, ms, count in self.kernels])


def part_of(name: str) -> str:
    """The part a kernel belongs to."""
    return next((part for part, pattern in PATTERNS if re.search(pattern, name)), "generated and rest")


def trace_micro_batch(step: Step, micro_batches: int = 3) -> Trace:
    """Profile some micro-batches back to back; the figures are the mean of one.

    Gradients are dropped afterwards; weights stay as they are.
    """
    cuda = step.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    for _ in range(2):
        step.micro_batch()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler writes its own begin and end to the console otherwise
    with torch.profiler.profile(activities=[activity], acc_events=True) as trace:
        for _ in range(micro_batches):
            step.micro_batch()
        if cuda:
            torch.cuda.synchronize()
    step.optimizer.zero_grad()
    total = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [(event.key, getattr(event, total) / 1e3 / micro_batches, event.count) for event in trace.key_averages()]
    kernels = sorted(
        ((name, ms, count // micro_batches) for name, ms, count in events if ms > 0), key=lambda row: -row[1]
    )
    sums = dict.fromkeys(PARTS, 0.0)
    for name, ms, _ in kernels:
        sums[part_of(name)] += ms
    # On a CPU what is fused on a GPU is many small operations that carry no name of their part.
    parts = {part: ms for part, ms in sums.items() if ms > 0}
    busy_ms, span_ms = sum(ms for _, ms, _ in kernels), None
    if cuda:
        ranges = sorted(
            (event.time_range.start, event.time_range.end)
            for event in trace.events() or []
            if event.device_type == torch._C._autograd.DeviceType.CUDA
        )
        busy_ms = _union(ranges) / 1e3 / micro_batches
        span_ms = (max(end for _, end in ranges) - ranges[0][0]) / 1e3 / micro_batches
    return Trace(parts=parts, kernels=kernels, busy_ms=busy_ms, span_ms=span_ms)


def _union(ranges: list[tuple[float, float]]) -> float:
    """Length that sorted intervals cover together."""
    covered, reached = 0.0, float("-inf")
    for start, end in ranges:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
