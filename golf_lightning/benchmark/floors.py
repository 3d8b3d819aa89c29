"""The least time that each part of a micro-batch can take on a machine: operations and bytes over what it can do."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from golf_lightning.model.config import GPTConfig

PARTS = ("products", "attention", "layer entry", "heads", "XSA", "loss", "generated and rest")
"""Parts of a micro-batch, forward and backward together."""
PASSES = {"layer entry": 16.0, "heads": 9.5, "XSA": 6.5}
"""``[T, D]`` tensors that a layer's part reads or writes, forward and backward, each once.

Layer entry: in x, x0, out u, n; back in du, dn, x, x0, out dx, dx0; the MLP's norm: in x, out n; back in dn, dx, n, out
dx. Skips and lanes read more. Heads, where k and v have half the heads of q: in q, k, v, out the same; back in three
gradients and q, k, out three gradients. XSA: in y, v, out y; back in dy, y, v, out dy, dv.
"""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What a machine does at best, as measured.

    Attributes:
        flops: of a large product in the dtype of the computation, per second, on random data.
        bytes: read and written by a large copy, per second.
    """

    flops: float
    bytes: float

    def to_dict(self) -> dict[str, float]:
        """Plain JSON values."""
        return asdict(self)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Median of several runs of one large product and one large copy; about a second on any machine."""
    gpu = device.type == "cuda"
    size, length = (8192, 2**30) if gpu else (1024, 2**26)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    flops = 2.0 * size**3 / _median_seconds(lambda: torch.mm(a, b, out=product), device)
    source = torch.zeros(length, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Ceilings(flops=flops, bytes=2.0 * length / _median_seconds(lambda: target.copy_(source), device))


def _median_seconds(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    gpu = device.type == "cuda"
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        if gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        work()
        if gpu:
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def product_flops(config: GPTConfig, depth: int) -> float:
    """Operations of the matrix products for one token, forward and backward, without attention's own.

    Six for every weight used; a layer that runs three times counts three times.
    """
    size = {name: rows * columns for name, (_, rows, columns) in config.bank_shapes.items()}
    layer = 2 * size["qo"] + 2 * size["kv"] + size["up"] + size["down"]
    return 6.0 * (depth * layer + config.vocab_size * config.width)


def attention_flops(config: GPTConfig, depth: int, segments: list[int]) -> float:
    """Operations of causal attention over segments of these lengths: 2 products forward, 5 backward, half of each."""
    pairs = sum(length * (length + 1) / 2 for length in segments)
    return depth * 7 * 2.0 * pairs * config.heads * config.head_dim


def floors_ms(
    config: GPTConfig, depth: int, tokens: int, segments: list[int], element_bytes: int, ceilings: Ceilings
) -> dict[str, float | None]:
    """Milliseconds that each of :data:`PARTS` needs at least for one micro-batch; ``None`` for what could vanish.

    Args:
        config: shape of the model.
        depth: virtual layers of the pass.
        tokens: of the micro-batch.
        segments: lengths of its documents.
        element_bytes: of an activation.
        ceilings: of the machine.
    """
    row = tokens * config.width * element_bytes / ceilings.bytes
    seconds: dict[str, float | None] = {part: depth * passes * row for part, passes in PASSES.items()}
    seconds["products"] = product_flops(config, depth) * tokens / ceilings.flops
    seconds["attention"] = attention_flops(config, depth, segments) / ceilings.flops
    # Logits are read, their gradient written.
    seconds["loss"] = 2 * tokens * config.vocab_size * element_bytes / ceilings.bytes
    seconds["generated and rest"] = None
    return {part: None if seconds[part] is None else 1e3 * seconds[part] for part in PARTS}  # type: ignore[operator]
