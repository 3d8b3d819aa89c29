"""On a Hopper GPU: FlashAttention-4's main backward kernel alone, and the kernels that take its neighbours' work."""

from typing import Any

import pytest
import torch
from attention_parts import read_accumulator
from torch import Tensor
from ttt_cases import score, small_config, small_gpt, small_split

from golf_lightning.kernels import whole_heads as facade
from golf_lightning.kernels.attention import varlen_attention
from golf_lightning.kernels.cross_entropy import IGNORED
from golf_lightning.kernels.flash_attention_4 import main_backward, serves_main_backward
from golf_lightning.kernels.heads import exclude_self, prepare_heads
from golf_lightning.kernels.whole_heads import padded_tokens, whole_heads, whole_heads_backward_op
from golf_lightning.model import gpt
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.model.rotary import document_positions, rotary_table

SHAPE = (torch.bfloat16, 8, 4, 64, 65)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not serves_main_backward(torch.device("cuda"), *SHAPE),
    reason="needs a GPU of compute capability 9.0 and flash-attn-4 4.0.0b36",
)

# Documents of 1, 127, 128, 129 and more tokens, an empty one, padding after the last, bounds repeated.
LENGTHS = [700, 1, 127, 0, 128, 129, 900, 2, 256]
USED, TOKENS = sum(LENGTHS), sum(LENGTHS) + 158


def bounds() -> Tensor:
    lengths = torch.tensor([0, *LENGTHS, *[0] * (64 - len(LENGTHS))])
    return lengths.cumsum(0).int().cuda()


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected.double()).norm() / expected.double().norm()).detach())


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def head_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cos, sin = rotary_table(2048, 16, 10_000.0).cuda()[:, document_positions(TOKENS, bounds())].unbind(0)
    return random(TOKENS, 1024).requires_grad_(), cos, sin, (5 * random(8)).requires_grad_()


def test_accumulators_hold_the_gradients_that_the_package_gives() -> None:
    from golf_lightning.kernels.triton_heads_backward import launch_exclude_backward_apart

    qkv, cos, sin, gain = (x.detach() for x in head_inputs())
    cu_seqlens, dout = bounds(), random(TOKENS, 8, 64)
    q, k, v = torch.ops.golf.prepare_heads(qkv, cos, sin, gain, cu_seqlens, 64)
    y, lse = torch.ops.golf.flash4_forward(q, k, v, cu_seqlens, 2048)
    tokens = padded_tokens(TOKENS, cu_seqlens)
    given = (dout, y, v, lse, cu_seqlens, tokens)
    dy, sums, logs, *accumulators = launch_exclude_backward_apart(*given, False, 1e-12, 16)
    main_backward(q, k, v, dy, logs, sums, *accumulators, cu_seqlens, 2048)
    expected = torch.ops.golf.flash4_backward(q, k, v, y, dy, lse, cu_seqlens, 2048)
    for accumulated, theirs, scale in zip(accumulators, expected, (0.125, 0.125, 1.0), strict=True):
        ours = read_accumulator(accumulated, cu_seqlens.tolist()) * scale
        assert error(ours, theirs[:USED]) < 4e-3  # theirs are rounded to 16 bits


@pytest.mark.parametrize("exclude", [True, False])
def test_gradients_are_as_near_to_float64_as_those_of_the_parts(exclude: bool) -> None:
    qkv, cos, sin, gain = head_inputs()
    cu_seqlens = bounds()
    options: dict[str, Any] = {"max_seqlen": 2048, "masked": False}

    def parts(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, backend: Any) -> Tensor:
        q, k, v, again = prepare_heads(x, cos, sin, gain, bounds().to(x.device), 64)
        y = varlen_attention(q, k, v, bounds().to(x.device), backend=backend, **options)
        return exclude_self(y, again, bounds().to(x.device), exclude=exclude)

    doubles = [x.detach().cpu().double().requires_grad_() for x in (qkv, gain)]
    exact = parts(*doubles, cos.cpu().double(), sin.cpu().double(), "reference")
    dout = random(TOKENS, 8, 64)
    expected = torch.autograd.grad(exact, doubles, dout.cpu().double())
    now = parts(qkv, gain, cos, sin, "fa4")
    more: Any = {"dtype": torch.bfloat16, "backend": "triton"}
    heads = whole_heads(cos, sin, cu_seqlens, (8, 4, 64), 2048, exclude=exclude, **more)
    assert heads is not None
    ours = heads(qkv, gain)
    assert torch.equal(ours, now)
    found = torch.autograd.grad(ours, (qkv, gain), dout)
    for mine, theirs, wanted in zip(found, torch.autograd.grad(now, (qkv, gain), dout), expected, strict=True):
        assert mine.isfinite().all()
        assert error(mine.cpu(), wanted) < 1.1 * error(theirs.cpu(), wanted)
    assert not found[0][USED:].any()


def test_the_operation_is_declared_correctly() -> None:
    qkv, cos, sin, gain = (x.detach() for x in head_inputs())
    cu_seqlens = bounds()
    q, k, v = torch.ops.golf.prepare_heads(qkv, cos, sin, gain, cu_seqlens, 64)
    y, lse = torch.ops.golf.flash4_forward(q, k, v, cu_seqlens, 2048)
    tensors = (random(TOKENS, 8, 64), q, k, v, y, lse, qkv, cos, sin, gain, cu_seqlens)
    given = (*tensors, padded_tokens(TOKENS, cu_seqlens), 2048, True)
    # Not compared with itself compiled: the kernel adds up in any order, and two calls differ in the last bit.
    torch.library.opcheck(whole_heads_backward_op, given, test_utils=("test_schema", "test_faketensor"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time the main kernel runs by itself."""
    seen: list[int] = []

    def counted(*args: Any) -> None:
        seen.append(len(args))
        main_backward(*args)

    monkeypatch.setattr(facade, "main_backward", counted)
    return seen


@pytest.mark.parametrize("compiled", [False, True])
def test_training_takes_them(calls: list[int], compiled: bool) -> None:
    config = GPTConfig(layers=4, vocab_size=512, loop_passes=1, loop_first=0, loop_last=0, lanes="none")
    model = GPT(config, compute_dtype=torch.bfloat16).cuda()
    if compiled:
        model.compile(dynamic=False, fullgraph=True)
    tokens, targets = torch.randint(0, config.vocab_size, (2, TOKENS), device="cuda")
    targets[USED:] = IGNORED
    model(tokens, targets, bounds()).sum().backward()
    assert len(calls) == config.layers


@pytest.mark.parametrize("mode", ["exact", "cached"])
def test_exact_test_time_training_takes_them(calls: list[int], monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    fields = {"width": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "mlp_width": 128, "rope_dims": 16}
    model = small_gpt(torch.float32, **fields).cuda()
    model.compute_dtype = torch.bfloat16
    config = small_config(mode=mode, chunk=16, window=64, rows=256, lr=1e-3)
    found = score(model, small_split([70, 5, 130, 33]), config).mean_nats
    assert bool(calls) == (mode == "exact")
    monkeypatch.setattr(gpt, "whole_heads", lambda *_, **__: None)
    assert found == pytest.approx(score(model, small_split([70, 5, 130, 33]), config).mean_nats, abs=2e-2)
