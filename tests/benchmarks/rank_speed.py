"""Speed over several ranks of one host: tokens/s against one rank, optimizer and communication with their floors.

    python tests/benchmarks/rank_speed.py --ranks 2 --json ranks.json                # full size, on two GPUs
    python tests/benchmarks/rank_speed.py --ranks 2 --size tiny --tokens 512         # any machine
    python tests/benchmarks/rank_speed.py --pretend 8                                # one GPU's share of eight

Three parts. `optimizer`: the optimizer step alone on random gradients, and each of its collectives alone. `step`: the
whole step that ``python -m golf_lightning bench`` times, on rank 0 alone with all micro-batches, then on all ranks
with a share of them, so that both see the same tokens in a step; the ratio of their tokens/s is what further ranks
are worth. `--pretend W` measures what one of W ranks computes in the optimizer, with collectives that do nothing.

Floors: the bytes of `wire_bytes` at the bandwidth of one large all-gather, Newton-Schulz at 790 TFLOP/s, and every
parameter, gradient and momentum through memory once at 4.3 TB/s (both measured on an H200).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing._internal.distributed.fake_pg import FakeStore

from golf_lightning.__main__ import end_process
from golf_lightning.benchmark.floors import Ceilings
from golf_lightning.benchmark.measure import measure_phase, synchronize
from golf_lightning.benchmark.step import Step
from golf_lightning.benchmark.stream import random_stream
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.muon import MuonAdamW
from golf_lightning.optim.warmup import compile_in_place

SIZES = {
    "golf": GPTConfig(),
    "tiny": GPTConfig(vocab_size=128, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=128, max_seqlen=256),
}
MATRIX_FLOPS, MEMORY_BYTES_PER_S = 790e12, 4.3e12
QUEUE_CYCLES = 20_000_000
"""Clock cycles for which the device is kept waiting, about 10 ms: longer than the host launches an optimizer step."""

PROBE_BYTES = {"cuda": 256 << 20, "cpu": 4 << 20}
"""Size of the all-gather whose bandwidth the floor takes."""


def measured(step: Step, recurrent: bool, steps: int) -> dict[str, Any]:
    """The figures of one phase."""
    ceilings = Ceilings(flops=MATRIX_FLOPS, bytes=MEMORY_BYTES_PER_S)
    return measure_phase(step, recurrent=recurrent, steps=steps, ceilings=ceilings)[0].to_dict()


def timed_ms(
    work: Callable[[], Any],
    device: torch.device,
    repeat: int,
    *,
    before: Callable[[], Any] | None = None,
    queued: bool = False,
) -> float:
    """Median milliseconds of ``work``; ranks begin together.

    On a GPU it starts with an empty queue, so the host's launches count; ``queued`` lets the device wait for them
    first, as it does in a training step.
    """
    spent = []
    for _ in range(repeat + 2):
        if before is not None:
            before()
        synchronize(device)
        if dist.is_initialized():
            dist.barrier()
        synchronize(device)
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            if queued:
                torch.cuda._sleep(QUEUE_CYCLES)
            begin.record()
            work()
            end.record()
            end.synchronize()
            spent.append(begin.elapsed_time(end))
        else:
            started = time.perf_counter()
            work()
            spent.append((time.perf_counter() - started) * 1e3)
    return statistics.median(spent[2:])


def build_optimizer(args: argparse.Namespace, device: torch.device) -> tuple[MuonAdamW, Callable[[], None]]:
    """The optimizer over the parameters of a model, and what gives them gradients."""
    torch.manual_seed(0)
    named = dict(GPT(SIZES[args.size]).to(device).named_parameters())
    gradients = {name: 1e-3 * torch.randn_like(parameter) for name, parameter in named.items()}
    optimizer = MuonAdamW(named.items(), OptimizerConfig())
    if dist.is_initialized():
        optimizer.join(dist.group.WORLD)

    def fill() -> None:
        for name, parameter in named.items():
            parameter.grad = gradients[name].clone()

    return optimizer, fill


def newton_schulz_flops(args: argparse.Namespace, world_size: int) -> float:
    """Products of five steps on the share of one rank."""
    total = 0.0
    for matrices, rows, columns in SIZES[args.size].bank_shapes.values():
        small, large = min(rows, columns), max(rows, columns)
        total += matrices * 5 * 2 * (2 * small * small * large + small**3)
    return total / world_size


def memory_bytes(args: argparse.Namespace, world_size: int) -> float:
    """Parameters read and written and gradients read on every rank; momenta read and written where they live."""
    config = SIZES[args.size]
    banks = sum(matrices * rows * columns for matrices, rows, columns in config.bank_shapes.values())
    embedding = config.vocab_size * config.width
    return 12.0 * (banks + embedding) + 8.0 * banks / world_size + 16.0 * embedding


def collectives_alone(optimizer: MuonAdamW, args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Milliseconds of each collective of a step, one at a time, and the GB/s of a large all-gather."""
    world_size = dist.get_world_size()
    spent: dict[str, float] = {}
    for index, pool in enumerate(optimizer._pools):
        for kind, launch in (("reduce_scatter", pool.launch_gradients), ("all_gather", lambda p=pool: gather(p))):
            wait = pool.gradients if kind == "reduce_scatter" else pool.updates
            spent[f"{kind} {index}"] = timed_ms(
                lambda launch=launch, wait=wait: (launch(), wait()), device, args.repeat
            )
    for sender in optimizer._large:
        spent["all_reduce embedding"] = timed_ms(
            lambda sender=sender: (sender.launch_gradients(), sender.gradient()), device, args.repeat
        )
    assert optimizer._packed is not None
    spent["all_reduce packed"] = timed_ms(optimizer._packed.reduce, device, args.repeat)
    whole = torch.zeros(PROBE_BYTES[device.type], dtype=torch.uint8, device=device)
    part = torch.zeros(whole.numel() // world_size, dtype=torch.uint8, device=device)
    gathered = list(whole.split(part.numel()))
    probe_ms = timed_ms(lambda: dist.all_gather(gathered, part), device, args.repeat)
    return {"ms": spent, "probe_GB_per_s": (whole.numel() - part.numel()) / probe_ms / 1e6}  # type: ignore[dict-item]


def gather(pool: Any) -> None:
    """The all-gather of a pool's updates, with the cast that belongs to it."""
    pool.launch_updates([shard for _, shard in pool._cut_up(pool._shard_SV)])


def optimizer_part(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The optimizer alone."""
    optimizer, fill = build_optimizer(args, device)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    result: dict[str, Any] = {
        "world_size": world_size,
        "ms_step": timed_ms(optimizer.step, device, args.repeat, before=fill),
        "ms_step_queued": timed_ms(optimizer.step, device, args.repeat, before=fill, queued=True),
        "wire_bytes": optimizer.wire_bytes(),
        "floor_ms_products": newton_schulz_flops(args, world_size) / MATRIX_FLOPS * 1e3,
        "floor_ms_memory": memory_bytes(args, world_size) / MEMORY_BYTES_PER_S * 1e3,
    }
    if world_size > 1 and not args.pretend:
        fill()
        alone = collectives_alone(optimizer, args, device)
        wire = sum(result["wire_bytes"].values())
        result |= {"collectives_alone": alone, "floor_ms_wire": wire / alone["probe_GB_per_s"] / 1e6}
    return result


def step_part(args: argparse.Namespace, device: torch.device, rank: int, hosts: Any) -> list[dict[str, Any]]:
    """Tokens/s of rank 0 alone and of all ranks, before and after recurrence."""
    torch.manual_seed(0)
    config = SIZES[args.size]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = GPT(config, compute_dtype=dtype, attention=args.attention, kernels=args.kernels).to(device)
    if device.type == "cuda":
        compile_in_place(model)
    batches = [batch.to(device) for batch in random_stream(config, args.tokens, 4, seed=rank)]
    phases = []
    for recurrent in (False, True):
        model.recurrent = recurrent
        # All ranks compile at once; the timed parts find it done.
        model(batches[0].tokens, batches[0].targets, batches[0].cu_seqlens).mean().backward()
        for total in args.micro_batches:
            phase: dict[str, Any] = {"recurrent": recurrent, "micro_batches": total}
            if rank == 0:
                step = Step(model, batches, total, OptimizerConfig())
                phase["alone"] = measured(step, recurrent, args.steps)
                del step
            dist.barrier(group=hosts)
            step = Step(model, batches, max(1, total // args.ranks), OptimizerConfig())
            step.optimizer.join(dist.group.WORLD)
            together = measured(step, recurrent, args.steps)
            dist.barrier(group=hosts)
            together["tokens_per_s"] *= args.ranks
            phase["together"] = together
            if rank == 0:
                phase["ratio"] = together["tokens_per_s"] / phase["alone"]["tokens_per_s"]
                print(json.dumps(phase), flush=True)
            phases.append(phase)
    return phases


def work(rank: int, args: argparse.Namespace, folder: str) -> None:
    """One rank; rank 0 writes the results."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=args.ranks,
        device_id=device if cuda else None,
    )
    result: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "ranks": args.ranks,
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "optimizer": optimizer_part(args, device),
    }
    if rank == 0:
        print(json.dumps(result["optimizer"]), flush=True)
    save(args, rank, result)
    if not args.only_optimizer:
        result["step"] = step_part(args, device, rank, dist.new_group(backend="gloo"))
    save(args, rank, result)
    dist.destroy_process_group()
    end_process(0)


def save(args: argparse.Namespace, rank: int, result: dict[str, Any]) -> None:
    """Write what there is so far, so that a run cut short leaves it."""
    if args.json and rank == 0:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def pretend(args: argparse.Namespace) -> None:
    """The optimizer's work of one of several ranks, on one device, with collectives that do nothing."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=args.pretend)
    result = {"pretended": optimizer_part(args, device)}
    dist.destroy_process_group()
    print(json.dumps(result), flush=True)
    save(args, 0, result)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes, one a GPU where there are GPUs")
    parser.add_argument("--pretend", type=int, default=0, help="measure one rank's optimizer as if there were so many")
    parser.add_argument("--size", choices=SIZES, default="golf")
    parser.add_argument("--tokens", type=int, default=98_304, help="tokens of a micro-batch")
    parser.add_argument(
        "--micro-batches", type=int, nargs="+", default=[8], help="micro-batches of a step, over all ranks together"
    )
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each phase")
    parser.add_argument("--repeat", type=int, default=20, help="timed repetitions of optimizer and collectives")
    parser.add_argument("--only-optimizer", action="store_true", help="leave the model out")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    if args.pretend:
        pretend(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, args=(args, folder), nprocs=args.ranks)


if __name__ == "__main__":
    main()
