"""Compile every Triton kernel at the recipe's sizes for a GPU that need not be there, and print what each asks of it.

    python compile_kernels.py 90                # compute capability times ten
    python compile_kernels.py 80 joining search # these parts alone

Prints two lines of JSON: bytes of shared memory, the most of any variant, by module and kernel; and the kernels there
are. Without a GPU the driver that Triton asks for the target is a stand-in, and launches end after the compiler.
"""

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from golf_lightning.compression import triton_search
from golf_lightning.kernels import (
    low_rank,
    slot_adamw,
    triton_chunk_attention,
    triton_heads,
    triton_heads_backward,
    triton_joining,
    triton_loss,
    triton_low_rank,
    triton_mixing,
    triton_mlp,
    whole_heads,
)
from golf_lightning.kernels.heads import ROWS_PER_PART

TOKENS, WIDTH, UNITS, PIECES, HEADS, KV_HEADS, HEAD_DIM, RANK = 2048, 512, 2048, 8192, 8, 4, 64, 96
EPS = 1e-6

shared: dict[str, int] = {}


def compile_only(capability: int) -> None:
    """From here on a launch compiles for ``capability`` and notes its shared memory."""
    compile_and_run = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = compile_and_run(self, *args, grid=grid, warmup=True, **options)
        name = f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}"
        shared[name] = max(shared.get(name, 0), kernel.metadata.shared)
        return kernel

    JITFunction.run = run
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
        )
    )


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


def floats(*shape: int) -> Tensor:
    return zeros(*shape, dtype=torch.float32)


def mlp() -> None:
    x, hidden = zeros(TOKENS, WIDTH), zeros(TOKENS, UNITS)
    triton_mlp.launch_hidden(x, zeros(UNITS, WIDTH), 0.5)
    triton_mlp.launch_product(x, zeros(WIDTH, UNITS), hidden)


def loss() -> None:
    for gradient in (True, False):
        logits, targets = zeros(TOKENS, PIECES), zeros(TOKENS, dtype=torch.int64)
        triton_loss.launch(logits, targets, 30.0, gradient, ignored=-100)


def mixing() -> None:
    # Streams, places of weights, columns, uses, written, scales of an entry, one after a skip, lanes, and their join.
    plans = (
        (2, [0, 1], 2, [3], [True], [0.7]),
        (3, [0, -1, 1], 1, [7], [True], [0.7]),
        (6, [4, 5, 0, 1, 2, 3, -1, 6, 7], 4, [0b11101, 0b1100000, 0b1110], [True, False, True], [0.0, 0.7, 0.3]),
        (4, [0, 1, 2, 3], 0, [15], [False], [1.0]),
    )
    x = zeros(TOKENS, WIDTH)
    for count, places, columns, *plan in plans:
        weights = zeros(columns * WIDTH + 1 + max(places) - columns)
        given = [x] * count, weights, places, columns, *plan
        results = triton_mixing.launch_mix(*given, EPS)
        grads = [torch.zeros_like(result) for result in results]
        for rows in (4, 1):
            triton_mixing.launch_mix_backward(grads, *given, -1, EPS, 132, rows)
    triton_mixing.launch_norm(x, 0.7, EPS)
    triton_mixing.launch_norm_backward(x, x, x, floats(TOKENS), 0.7)


def heads() -> None:
    cu_seqlens = torch.tensor([0, TOKENS], dtype=torch.int32)
    cos, sin, gain = floats(TOKENS, 8), floats(TOKENS, 8), floats(HEADS)
    qkv = zeros(TOKENS, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    q, k, v = triton_heads.launch_prepare(qkv, cos, sin, gain, cu_seqlens, HEAD_DIM, EPS)
    given = qkv, cos, sin, gain, cu_seqlens, EPS
    triton_heads_backward.launch_prepare_backward(q, k, v, v, *given, ROWS_PER_PART, HEAD_DIM)
    for exclude in (True, False):
        triton_heads.launch_exclude(q, v, cu_seqlens, exclude, EPS)
        triton_heads_backward.launch_exclude_backward(q, q, v, cu_seqlens, exclude, EPS)
    places, rows = zeros(TOKENS + 128, dtype=torch.int32), whole_heads.PADDED_ROWS
    triton_heads_backward.launch_exclude_backward_apart(
        q, q, v, floats(HEADS, TOKENS), cu_seqlens, places, True, EPS, rows
    )
    dq, dk, dv = (floats(count, len(places) * HEAD_DIM) for count in (HEADS, KV_HEADS, KV_HEADS))
    triton_heads_backward.launch_prepare_backward(dq, dk, dv, None, *given, rows, HEAD_DIM, places)


def joining() -> None:
    x = zeros(TOKENS, WIDTH)
    for weights in (zeros(3, WIDTH), zeros(3, 1), None):
        u, _ = triton_joining.launch_join([x] * 3, weights, 0.7, True, EPS)
        for du in (x, None):
            triton_joining.launch_join_backward(du, [x] * 3, u, weights, 0.7, [True, False, True], EPS)


def adapters() -> None:
    constants = slot_adamw.AdamWConstants(lr=1e-4, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0)
    slots = torch.zeros(4, dtype=torch.int32)
    for tile, span in ((16, 16), (64, 64)):
        bounds = torch.arange(5, dtype=torch.int32) * 3 * tile
        rows = low_rank.RowSlots(bounds, slots, slots, total=12 * tile, tile=tile, span=span, last=4)
        for columns, scaled in (([(0, 512), (512, 768), (768, 1024)], True), ([(0, PIECES)], False)):
            flat = [bound for pair in columns for bound in pair]
            base, x = zeros(12 * tile, flat[-1]), zeros(12 * tile, WIDTH)
            scale = zeros(flat[-1]) if scaled else None
            a, b = zeros(5, RANK * len(columns), WIDTH), zeros(5, flat[-1], RANK)
            _, h = triton_low_rank.launch_forward(base, x, a, b, scale, rows, flat, 1.5)
            corrected = slot_adamw.corrections(torch.ones(4), constants, torch.float32)
            learning = slot_adamw.Learning(slots, corrected, constants, None)
            states = [slot_adamw.SlotTensor(w.float(), w, w.float(), w.float()) for w in (a, b)]
            for learner in (None, low_rank.Learner(*states, learning)):
                triton_low_rank.launch_backward(base, x, h, a, b, scale, rows, flat, 1.5, learner=learner, want_dx=True)


def chunk_attention() -> None:
    for chunk in (8, 16, 32, 64):
        q, k = zeros(4 * chunk, HEADS, HEAD_DIM), zeros(4 * chunk, KV_HEADS, HEAD_DIM)
        kept, slots = zeros(4, 2048, KV_HEADS, HEAD_DIM), torch.zeros(4, dtype=torch.int32)
        given = kept, kept, slots, slots, chunk, 2048
        out, lse = triton_chunk_attention.launch(q, k, k, *given)
        triton_chunk_attention.launch_backward(q, q, k, k, out, lse, *given)


def search() -> None:
    triton_search.launch_search(floats(64, 512), 31)


PARTS: tuple[Callable[[], None], ...] = mlp, loss, mixing, heads, joining, adapters, chunk_attention, search


def kernels() -> list[str]:
    """All kernels of the imported modules, by module and name."""
    modules = [module for name, module in sys.modules.items() if name.startswith("golf_lightning")]
    ours = {value for module in modules for value in vars(module).values() if isinstance(value, JITFunction)}
    return [f"{k.fn.__module__.rpartition('.')[2]}.{k.fn.__name__}" for k in ours if k.fn.__name__.endswith("_kernel")]


if __name__ == "__main__":
    compile_only(int(sys.argv[1]))
    for part in PARTS:
        if part.__name__ in (sys.argv[2:] or [part.__name__]):
            part()
    print(json.dumps(shared))
    print(json.dumps(kernels()))
