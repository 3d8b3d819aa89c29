"""Speed of the optimizer step on one device: tokens/s, milliseconds by part, memory, recompiles.

    python tests/benchmarks/step_speed.py --json step.json                 # full size, on a GPU
    python tests/benchmarks/step_speed.py --size tiny --tokens 512         # any machine

The step is the bare one, without Lightning: ``accumulate`` micro-batches forward and backward, Muon and AdamW, and an
average of the weights. The stream is fixed: documents of log-normal length (median 475 tokens, sigma 1.03, about 148 in
98,304 tokens), random tokens.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from golf_lightning.data.batch import PackedBatch
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.muon import MuonAdamW

SIZES = {
    "golf": GPTConfig(),
    "tiny": GPTConfig(vocab_size=128, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=128, max_seqlen=256),
}
PEAK_FLOPS = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12}
"""Dense bf16 by datasheet, which model FLOP utilization is quoted against."""


def make_stream(config: GPTConfig, tokens: int, count: int, *, segments: int = 256, seed: int = 0) -> list[PackedBatch]:
    """``count`` micro-batches of ``tokens`` tokens; documents are cut at batch ends and at ``max_seqlen``."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        bounds = [0]
        while bounds[-1] < tokens:
            length = round(475 * math.exp(1.03 * float(torch.randn((), generator=generator))))
            stop = min(bounds[-1] + max(length, 1), tokens)
            bounds += [*range(bounds[-1] + config.max_seqlen, stop, config.max_seqlen), stop]
        assert len(bounds) <= segments + 1, "too many documents for the fixed number of segments"
        text = torch.randint(0, config.vocab_size, (tokens + 1,), generator=generator)
        cu_seqlens = torch.tensor(bounds + [tokens] * (segments + 1 - len(bounds)), dtype=torch.int32)
        batches.append(PackedBatch(text[:-1], text[1:], cu_seqlens))
    return batches


def model_flops(config: GPTConfig, depth: int) -> float:
    """Matrix products per token, forward and backward, without attention's own."""
    shapes = {name: rows * columns for name, (_, rows, columns) in config.bank_shapes.items()}
    layer = 2 * shapes["qo"] + 2 * shapes["kv"] + shapes["up"] + shapes["down"]
    return 6.0 * (depth * layer + config.vocab_size * config.width)


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
        for (_, start), (part, stop) in zip(self.marks, self.marks[1:], strict=False):
            spent = start.elapsed_time(stop) if self.cuda else (stop - start) * 1e3
            parts[part] = parts.get(part, 0.0) + spent
        return parts


class Step:
    """One optimizer step of the recipe on one device."""

    def __init__(
        self, model: GPT, batches: list[PackedBatch], accumulate: int, optimizer: OptimizerConfig | None = None
    ) -> None:
        self.model, self.batches, self.accumulate = model, batches, accumulate
        self.optimizer = MuonAdamW(model.named_parameters(), optimizer or OptimizerConfig())
        self.average = [parameter.detach().clone() for parameter in model.parameters()]

    def micro_batch(self, batch: PackedBatch, mark: Callable[[str], None] = lambda _: None) -> Tensor:
        """Forward and backward of one micro-batch; returns the detached loss."""
        loss = self.model(batch.tokens, batch.targets, batch.cu_seqlens).mean()
        mark("forward")
        (loss / self.accumulate).backward()
        mark("backward")
        return loss.detach()

    def run(self, mark: Callable[[str], None] = lambda _: None) -> Tensor:
        """One step; returns the last micro-batch's loss without waiting for it."""
        mark("other")
        for i in range(self.accumulate):
            loss = self.micro_batch(self.batches[i % len(self.batches)], mark)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, list(self.model.parameters()), 0.0035)
        mark("optimizer")
        return loss


def measure(step: Step, *, recurrent: bool, steps: int, device: torch.device) -> dict[str, Any]:
    """Compile, warm up and time one phase of training."""
    step.model.recurrent = recurrent
    started = time.perf_counter()
    step.micro_batch(step.batches[0])
    step.optimizer.zero_grad()
    synchronize(device)
    first_s = time.perf_counter() - started
    for _ in range(2):
        step.run()
    synchronize(device)
    started = time.perf_counter()
    step.micro_batch(step.batches[0])
    host_ms = (time.perf_counter() - started) * 1e3
    step.optimizer.zero_grad()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    graphs, clock = compiled_graphs(), Clock(device)
    # A wait of the host for the device within these steps raises.
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    started = time.perf_counter()
    losses = [step.run(clock.mark) for _ in range(steps)]
    enqueued_s = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    synchronize(device)
    elapsed = time.perf_counter() - started
    tokens = step.batches[0].tokens.numel() * step.accumulate * steps
    flops = model_flops(step.model.config, step.model.plan.depth)
    parts = clock.milliseconds()
    return {
        "recurrent": recurrent,
        "tokens_per_s": tokens / elapsed,
        "ms_per_step": elapsed / steps * 1e3,
        "ms_per_micro_batch": {name: parts[name] / steps / step.accumulate for name in ("forward", "backward")},
        "ms_optimizer": parts["optimizer"] / steps,
        # Time of the host to launch one micro-batch into an empty queue: it must stay well below the micro-batch's own.
        "host_ms_per_micro_batch": host_ms,
        "host_share": enqueued_s / elapsed,
        "first_micro_batch_s": first_s,
        "recompiles": compiled_graphs() - graphs,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "model_tflops": flops * tokens / elapsed / 1e12,
        "mfu": flops * tokens / elapsed / peak if (peak := peak_flops(device)) else None,
        "loss": float(losses[-1]),
    }


def peak_flops(device: torch.device) -> float | None:
    """Peak of the device by datasheet, or ``None`` where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for known, flops in PEAK_FLOPS.items() if name.startswith(known)), None)


def compiled_graphs() -> int:
    """Graphs that torch.compile has compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def profile(step: Step, device: torch.device) -> list[tuple[str, float, int]]:
    """Kernels of one micro-batch by time on the device: name, milliseconds, calls."""
    cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as trace:
        step.micro_batch(step.batches[0])
        synchronize(device)
    step.optimizer.zero_grad()
    total = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = [(event.key, getattr(event, total) / 1e3, event.count) for event in trace.key_averages()]
    return sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])


def build(args: argparse.Namespace, device: torch.device) -> Step:
    """The model and its data on the device."""
    torch.manual_seed(0)
    config = SIZES[args.size]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = GPT(config, compute_dtype=dtype, attention=args.attention, kernels=args.kernels).to(device)
    compiles = args.compile if args.compile is not None else device.type == "cuda"
    if compiles:
        model.compile(dynamic=False, fullgraph=True)
    batches = [batch.to(device) for batch in make_stream(config, args.tokens, args.accumulate)]
    return Step(model, batches, args.accumulate)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="golf")
    parser.add_argument("--tokens", type=int, default=98_304, help="tokens of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=8, help="micro-batches of a step")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each phase")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--profile", type=Path, help="file for a table of kernels")
    return parser.parse_args()


def main() -> None:
    args = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = build(args, device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    shown = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    result: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "arguments": shown, "phases": []}
    lines = []
    for recurrent in (False, True):
        phase = measure(step, recurrent=recurrent, steps=args.steps, device=device)
        result["phases"].append(phase)
        print(json.dumps(phase), flush=True)
        if args.profile:
            rows = profile(step, device)
            lines.append(
                f"recurrent={recurrent}: {sum(row[1] for row in rows):.2f} ms in {sum(r[2] for r in rows)} calls"
            )
            lines += [f"{ms:9.3f} ms {count:5d} x  {name[:150]}" for name, ms, count in rows]
            args.profile.write_text("\n".join(lines) + "\n")
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
