"""Everything that compiles, compiled before the clock starts, and no trace left of it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from golf_lightning.data.batch import PackedBatch
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.muon import MuonAdamW


def keep_compiled_code(folder: Path) -> None:
    """Let torch.compile and the kernels' packages keep what they compile in one folder; call it before they do."""
    folder = folder.absolute()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] = "1"
    os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] = str(folder / "flash_attention")
    os.environ["QUACK_CACHE_DIR"] = str(folder / "quack")


def compile_in_place(model: GPT) -> None:
    """Compile the model's forward pass into one graph for each order of its layers.

    Torch by default traces a graph with own autograd functions anew in every process. Here it keeps the traced graphs
    too, which halves the start with warm caches: what the functions compute is part of the graph that names an entry.
    """
    from torch._inductor.exc import OperatorIssue

    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    # What torch tells of an operator names its inputs, and all of theirs, once for each way that leads to them: too
    # much at the end of this network. Torch 2.11 makes that text for each operator that is new to it, wanted or not.
    OperatorIssue.operator_str = staticmethod(lambda target, *_: str(target))  # type: ignore[assignment, method-assign]
    # In place: assigning torch.compile(model) would prefix every key of the state dict.
    model.compile(dynamic=False, fullgraph=True)


def process_seconds() -> float | None:
    """Seconds since this process began; ``None`` where the system does not tell in ``/proc``."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return None
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def random_batch(batch: PackedBatch, vocab_size: int, seed: int = 0) -> PackedBatch:
    """A batch of the same shapes with random tokens: nothing of the data is touched."""
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(0, vocab_size, (2, batch.tokens.numel()), generator=generator)
    return PackedBatch(tokens, targets, batch.cu_seqlens.clone())


@contextmanager
def without_trace(model: GPT, optimizer: MuonAdamW) -> Iterator[None]:
    """Restore parameters, recurrence, optimizer state and random generators when the block ends."""
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    recurrent, snapshot = model.recurrent, optimizer.snapshot()
    devices = [model.embedding.device] if model.embedding.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        yield
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
            parameter.grad = None
    model.recurrent = recurrent
    optimizer.restore(snapshot)


def warm_up(model: GPT, optimizer: MuonAdamW, batch: PackedBatch, *, recurrence: list[bool]) -> None:
    """Run one optimizer step on ``batch`` for every setting of recurrence.

    Args:
        model: the model on its device, compiled or not.
        optimizer: stepped as in training, collectives included, so every rank must call this.
        batch: random tokens in the shapes of training, on the model's device.
        recurrence: the settings that the run will use.
    """
    with without_trace(model, optimizer):
        for recurrent in recurrence:
            model.recurrent = recurrent
            loss: Tensor = model(batch.tokens, batch.targets, batch.cu_seqlens).mean()
            loss.backward()
            optimizer.step()
    if batch.tokens.is_cuda:
        torch.cuda.synchronize()
