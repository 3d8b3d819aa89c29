"""Timing of one phase of training: before depth recurrence, or after."""

import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch

from golf_lightning.benchmark.floors import Ceilings, floors_ms, product_flops
from golf_lightning.benchmark.parts import Trace, trace_micro_batch
from golf_lightning.benchmark.power import PowerMeter
from golf_lightning.benchmark.step import Clock, Step


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Figures of one phase.

    Attributes:
        recurrent: whether depth recurrence is on.
        tokens_per_s: over whole optimizer steps.
        ms_per_step: of an optimizer step.
        ms_forward: of a micro-batch's forward pass.
        ms_backward: of its backward pass.
        ms_optimizer: of the optimizer and the average, a step.
        host_ms: of the host to launch one micro-batch into an empty queue; must stay well below the micro-batch's own.
        first_s: of the first micro-batch, compilation included.
        recompiles: graphs compiled within the timed steps.
        peak_memory_gb: of the device, in 10^9 bytes; ``None`` on a CPU.
        mfu: model FLOP utilization: operations of the matrix products over what the machine does in a large product,
            as measured.
        loss: of the last micro-batch.
        ms_parts: of one micro-batch, by part, where kernels could be told apart.
        ms_floors: least milliseconds of each part.
        ms_gaps: between kernels, a micro-batch; ``None`` on a CPU.
        watts: mean power of the GPU's board in the timed steps; ``None`` where it is not known, like the next four.
        watts_limit: to which the board is held.
        joules_per_step: energy of an optimizer step.
        mhz: mean clock of the multiprocessors in the timed steps.
        mhz_limit: their highest.
    """

    recurrent: bool
    tokens_per_s: float
    ms_per_step: float
    ms_forward: float
    ms_backward: float
    ms_optimizer: float
    host_ms: float
    first_s: float
    recompiles: int
    peak_memory_gb: float | None
    mfu: float
    loss: float
    ms_parts: dict[str, float]
    ms_floors: dict[str, float | None]
    ms_gaps: float | None
    watts: float | None
    watts_limit: float | None
    joules_per_step: float | None
    mhz: float | None
    mhz_limit: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def measure_phase(step: Step, *, recurrent: bool, steps: int, ceilings: Ceilings) -> tuple[Phase, Trace]:
    """Compile, warm up, time and profile one phase. On a GPU a wait of the host within the timed steps raises."""
    device, model = step.device, step.model
    cuda = device.type == "cuda"
    model.recurrent = recurrent
    first_s = _seconds_of_micro_batch(step)
    for _ in range(2):
        step.run()
    synchronize(device)
    host_ms = 1e3 * _seconds_of_micro_batch(step, wait=False)
    meter, clocks = PowerMeter(device), list[int]()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    graphs, clock = _compiled_graphs(), Clock(device)
    started, joules = time.perf_counter(), meter.joules()
    for _ in range(steps):
        loss = step.run(clock.mark)
        if (mhz := meter.mhz()) is not None:  # the host is ahead of the device, which is at work
            clocks.append(mhz)
    if cuda:
        torch.cuda.set_sync_debug_mode("default")
    synchronize(device)
    elapsed = time.perf_counter() - started
    used = _difference(meter.joules(), joules)
    recompiles = _compiled_graphs() - graphs
    memory = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    batch = step.batches[0]
    tokens, depth = batch.tokens.numel(), model.plan.depth
    rate = tokens * step.accumulate * steps / elapsed
    marks = clock.milliseconds()
    trace = trace_micro_batch(step)
    lengths = [length for length in batch.cu_seqlens.diff().tolist() if length]
    element = torch.empty((), dtype=model.compute_dtype).element_size()
    floors = floors_ms(model.config, depth, tokens, lengths, element, ceilings)
    phase = Phase(
        recurrent=recurrent,
        tokens_per_s=rate,
        ms_per_step=1e3 * elapsed / steps,
        ms_forward=marks["forward"] / steps / step.accumulate,
        ms_backward=marks["backward"] / steps / step.accumulate,
        ms_optimizer=marks["optimizer"] / steps,
        host_ms=host_ms,
        first_s=first_s,
        recompiles=recompiles,
        peak_memory_gb=memory,
        mfu=product_flops(model.config, depth) * rate / ceilings.flops,
        loss=float(loss),
        ms_parts=trace.parts,
        ms_floors={part: floors[part] for part in trace.parts},
        ms_gaps=_difference(trace.span_ms, trace.busy_ms),
        watts=None if used is None else used / elapsed,
        watts_limit=meter.limit_w,
        joules_per_step=None if used is None else used / steps,
        mhz=sum(clocks) / len(clocks) if clocks else None,
        mhz_limit=meter.limit_mhz,
    )
    return phase, trace


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _seconds_of_micro_batch(step: Step, *, wait: bool = True) -> float:
    started = time.perf_counter()
    step.micro_batch()
    if wait:
        synchronize(step.device)
    seconds = time.perf_counter() - started
    step.optimizer.zero_grad()
    synchronize(step.device)
    return seconds


def _compiled_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
