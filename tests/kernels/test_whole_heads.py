"""Heads as one operation, on a CPU: the padded layout, the mathematics around the main kernel, its place in a model.

The Triton kernels run in Triton's interpreter where the package is installed, around the main kernel's contract in
float64; tests/gpu has both kernels as they are.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from attention_parts import attention_gradients
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._guards import active_fake_mode
from without_gpu import interpret, needs_triton

from golf_lightning.kernels import flash_attention_4
from golf_lightning.kernels import whole_heads as facade
from golf_lightning.kernels.attention import varlen_attention
from golf_lightning.kernels.cross_entropy import IGNORED
from golf_lightning.kernels.flash_attention_4 import serves_main_backward
from golf_lightning.kernels.heads import exclude_backward_op, exclude_self, prepare_backward_op, prepare_heads
from golf_lightning.kernels.whole_heads import (
    PADDED_ROWS,
    WholeHeads,
    padded_tokens,
    whole_heads,
    whole_heads_backward_op,
)
from golf_lightning.model import gpt
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.rotary import rotary_table

LENGTHS = st.lists(st.sampled_from([0, 1, 3, 127, 128, 129, 255, 256, 300]), min_size=1, max_size=6)


@given(lengths=LENGTHS, padding=st.sampled_from([0, 1, 127, 130]))
def test_every_token_has_its_row_in_the_padded_layout(lengths: list[int], padding: int) -> None:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    bounds = [*cu_seqlens.tolist(), sum(lengths) + padding]
    found = padded_tokens(bounds[-1], cu_seqlens)
    expected = torch.full(((bounds[-1] + len(cu_seqlens) * 128 - 1) // 128 * 128,), -1, dtype=torch.int32)
    for s, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        first = (start + 128 * s) // 128 * 128
        expected[first : first + stop - start] = torch.arange(start, stop)
    torch.testing.assert_close(found, expected)


# T = 6 tokens of which the last is padding, 4 query and 2 key/value heads of 16, all rotated
BOUNDS = torch.tensor([0, 2, 5, 5], dtype=torch.int32)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The operations of a GPU by their formulas, and every choice as on one."""
    library = torch.library.Library("golf", "FRAGMENT")

    def forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
        y = varlen_attention(q, k, v, cu_seqlens, max_seqlen=max_seqlen, backend="reference")
        return y.index_fill(0, torch.arange(int(cu_seqlens[-1]), len(y)), torch.nan), y.new_empty(q.shape[1], len(q))

    def backward(
        dout: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor,
        gain: Tensor, cu_seqlens: Tensor, tokens: Tensor, max_seqlen: int, exclude: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        dy, dv_again = exclude_backward_op(dout, y, v, cu_seqlens, exclude)
        gradients = attention_gradients(q, k, v, dy, cu_seqlens.tolist())
        dqkv, whole = prepare_backward_op(*gradients, dv_again, qkv, cos, sin, gain, cu_seqlens)
        parts = whole.new_zeros(tokens.shape[0] // PADDED_ROWS, whole.shape[1])
        parts[:1] = whole
        return dqkv, parts

    constant = torch.compiler.assume_constant_result
    monkeypatch.setattr(facade, "serves_main_backward", constant(lambda *_: True))
    monkeypatch.setattr(gpt, "choose_kernels", constant(lambda kernels, *_: "triton" if kernels == "auto" else kernels))
    monkeypatch.setattr(gpt, "choose_backend", constant(lambda *_: "fa4"))
    library.impl("flash4_forward", forward, "CPU")
    library.impl("whole_heads_backward", backward, "CPU")
    yield
    library._destroy()


def head_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    cos, sin = rotary_table(6, 16, 100.0).double().unbind(0)
    qkv, gain = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 128), (4,)))
    return qkv, cos, sin, gain


def some_heads(cos: Tensor, sin: Tensor, exclude: bool) -> WholeHeads:
    options: Any = {"dtype": torch.float64, "backend": "triton"}
    heads = whole_heads(cos, sin, BOUNDS, (4, 2, 16), 6, exclude=exclude, **options)
    assert heads is not None
    return heads


@pytest.mark.parametrize("exclude", [True, False])
def test_whole_heads_have_the_value_and_gradients_of_their_parts(on_cpu: None, exclude: bool) -> None:
    qkv, cos, sin, gain = head_inputs()
    out = some_heads(cos, sin, exclude)(qkv, gain)
    q, k, v, v_again = prepare_heads(qkv, cos, sin, gain, BOUNDS, 16)
    y = varlen_attention(q, k, v, BOUNDS, max_seqlen=6, backend="reference")
    expected = exclude_self(y, v_again, BOUNDS, exclude=exclude)
    weight = torch.randn_like(out)
    results = [(x, *torch.autograd.grad((x * weight).sum(), (qkv, gain))) for x in (out, expected)]
    torch.testing.assert_close(*results)


def test_no_gradient_of_the_gains_where_none_is_asked_for(on_cpu: None) -> None:
    qkv, cos, sin, gain = head_inputs()
    out = some_heads(cos, sin, True)(qkv, gain.detach())
    assert torch.autograd.grad(out.sum(), qkv)[0].any()


def test_shapes_for_tracing_are_those_of_the_operation(on_cpu: None) -> None:
    q, k, v, y, dout = (torch.randn(6, heads, 16) for heads in (4, 2, 2, 4, 4))
    cos, sin = rotary_table(6, 16, 100.0).unbind(0)
    tensors = (dout, q, k, v, y, torch.randn(4, 6), torch.randn(6, 128), cos, sin, torch.randn(4), BOUNDS)
    torch.library.opcheck(whole_heads_backward_op, (*tensors, padded_tokens(6, BOUNDS), 6, True))


def small(kernels: Any) -> tuple[gpt.GPT, tuple[Tensor, Tensor, Tensor]]:
    config = GPTConfig(
        layers=3, vocab_size=16, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=16, rope_dims=16, max_seqlen=16,
        loop_passes=1, loop_first=0, loop_last=0, lanes="none",
    )  # fmt: skip
    torch.manual_seed(0)
    model = gpt.GPT(config, attention="reference", kernels=kernels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tokens, targets = torch.randint(0, 16, (2, 32))
    targets[30:] = IGNORED
    return model, (tokens, targets, torch.tensor([0, 10, 26, 30, 30], dtype=torch.int32))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_takes_them_and_keeps_its_loss_and_gradients(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    expected, batch = small("reference")
    monkeypatch.setattr(gpt, "choose_backend", lambda *_: "reference")
    expected(*batch).sum().backward()
    monkeypatch.setattr(gpt, "choose_backend", torch.compiler.assume_constant_result(lambda *_: "fa4"))
    model, _ = small("auto")
    if compiled:
        model.compile(backend="aot_eager", dynamic=False, fullgraph=True)
    loss = model(*batch).sum()
    loss.backward()
    for (name, found), parameter in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found.grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("rope_dims, kernels", [(8, "triton"), (16, "reference"), (32, "triton")])
def test_heads_run_in_parts_where_the_kernels_cannot_take_them(on_cpu: None, rope_dims: int, kernels: Any) -> None:
    table = rotary_table(6, rope_dims, 100.0).unbind(0)
    options: Any = {"dtype": torch.float32, "backend": kernels}
    assert whole_heads(*table, BOUNDS, (4, 2, 16), 6, exclude=True, **options) is None


SHAPE = (torch.bfloat16, 8, 4, 64, 257)


@pytest.mark.parametrize(
    "version, capability, shape, served",
    [
        ("4.0.0b36", (9, 0), SHAPE, True),
        ("4.0.0b37", (9, 0), SHAPE, False),
        (None, (9, 0), SHAPE, False),
        ("4.0.0b36", (10, 0), SHAPE, False),
        ("4.0.0b36", (9, 0), (torch.float16, 8, 4, 64, 257), False),
        ("4.0.0b36", (9, 0), (torch.bfloat16, 8, 8, 64, 257), False),
        ("4.0.0b36", (9, 0), (torch.bfloat16, 8, 4, 128, 257), False),
        ("4.0.0b36", (9, 0), (torch.bfloat16, 8, 4, 64, 258), False),
    ],
)
def test_only_the_known_kernel_is_called_by_itself(
    monkeypatch: pytest.MonkeyPatch, version: str | None, capability: tuple[int, int], shape: Any, served: bool
) -> None:
    monkeypatch.setattr(flash_attention_4, "_version", lambda: version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert serves_main_backward(torch.device("cuda"), *shape) == served


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package that compiles for tensors without memory and keeps kernels as the real one does."""
    compiled: list[Any] = []

    def backward(q: Tensor, k: Tensor, v: Tensor, *_: Tensor, **options: Any) -> tuple[Tensor, ...]:
        assert active_fake_mode() is not None and q.is_cuda and options["causal"]
        key = (q.shape[1:], k.shape[1:], q.dtype, options["cu_seqlens_q"].shape, options["max_seqlen_q"])
        if compiled and compiled[-1] == "broken":
            raise RuntimeError("no compiler")
        if key not in interface._flash_attn_bwd.compile_cache:
            compiled.append(key)
            interface._flash_attn_bwd.compile_cache[key] = lambda *given: calls.append(given)
        return q, k, v

    interface: Any = ModuleType("flash_attn.cute.interface")
    interface._flash_attn_bwd, interface.compiled = backward, compiled
    interface.calls = calls = []
    interface.kept = backward.compile_cache = {"another": None}  # type: ignore[attr-defined]
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)
    flash_attention_4._main_kernel.cache_clear()
    yield interface
    flash_attention_4._main_kernel.cache_clear()


def test_the_main_kernel_is_that_of_the_package_and_compiled_once(package: Any) -> None:
    q, k, v, dout = (torch.zeros(6, heads, 64, dtype=torch.bfloat16) for heads in (4, 2, 2, 4))
    tensors = (q, k, v, dout, *(torch.zeros(4, 384) for _ in range(2)), *(torch.zeros(n, 384 * 64) for n in (4, 2, 2)))
    for _ in range(2):
        flash_attention_4.main_backward(*tensors, BOUNDS, 2048)
    assert package.compiled == [((4, 64), (2, 64), torch.bfloat16, (4,), 2048)]
    assert package._flash_attn_bwd.compile_cache is package.kept
    for call in package.calls:
        assert [id(x) for x in call[:9]] == [id(x) for x in tensors]
        assert call[9] == 0.125 and call[10] is call[11] is BOUNDS
        assert call[12:] == (*[None] * 7, (None, None), None, None)
    assert len(package.calls) == 2


def test_the_packages_cache_is_its_own_again_when_compiling_fails(package: Any) -> None:
    package.compiled.append("broken")
    with pytest.raises(RuntimeError, match="no compiler"):
        flash_attention_4._main_kernel(4, 2, 64, torch.bfloat16, 4, 2048)
    assert package._flash_attn_bwd.compile_cache is package.kept


INTERPRETED = """
import sys
sys.path.insert(0, sys.argv[1])
import attention_parts as parts
import torch
from golf_lightning.kernels import heads, triton_heads_backward as kernels, whole_heads
from golf_lightning.kernels.attention import varlen_attention
from golf_lightning.kernels.cross_entropy import IGNORED
from golf_lightning.model.rotary import rotary_table
torch.manual_seed(0)
whole_heads.main_backward = parts.main_backward
for lengths, padding, rope_dims, query_heads, kv_heads, exclude in (
    ([1, 127, 0, 128, 129, 3, 0, 0], 5, 16, 4, 2, True),
    ([40, 0], 0, 64, 3, 1, False),
    ([0, 0], 7, 16, 2, 1, True),
):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    bounds = cu_seqlens.tolist()
    used, tokens = bounds[-1], bounds[-1] + padding
    cos, sin = rotary_table(tokens, rope_dims, 100.0).unbind(0)
    qkv = torch.randn(tokens, (query_heads + 2 * kv_heads) * 64, requires_grad=True)
    gain = torch.randn(query_heads, requires_grad=True)
    doubles = [x.detach().double().requires_grad_() for x in (qkv, gain)]
    q, k, v, again = heads.prepare_heads(doubles[0], cos.double(), sin.double(), doubles[1], cu_seqlens, 64)
    y = varlen_attention(q, k, v, cu_seqlens, max_seqlen=512, backend="reference")
    expected = heads.exclude_self(y, again, cu_seqlens, exclude=exclude)
    dout = torch.randn_like(expected)
    expected.backward(dout)
    lse = parts.softmax_sums(q, k, bounds)
    tokens_P = whole_heads.padded_tokens(tokens, cu_seqlens)
    # What kernels leave unwritten must not matter.
    y = y.index_fill(0, torch.arange(used, tokens), torch.nan)
    saved = [x.detach().float().contiguous() for x in (q, k, v, y, lse)]
    given = (dout.float(), *saved, qkv.detach(), cos, sin, gain.detach(), cu_seqlens, tokens_P, 512, exclude)
    dqkv, sums = whole_heads.whole_heads_backward_op(*given)
    torch.testing.assert_close(dqkv.double(), doubles[0].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums.sum(0).double(), doubles[1].grad, rtol=1e-4, atol=1e-4)
    assert sums.shape == (len(tokens_P) // whole_heads.PADDED_ROWS, query_heads)

    torch.utils.deterministic.fill_uninitialized_memory = True
    found = kernels.launch_exclude_backward_apart(
        dout.float(), saved[3], saved[2], saved[4], cu_seqlens, tokens_P, exclude, 1e-12, 16
    )
    dy, sums, logs, *accumulators = found
    expected, dv = heads.exclude_backward_op(dout.float(), saved[3], saved[2], cu_seqlens, exclude)
    torch.testing.assert_close(dy, expected)
    rows = torch.tensor(parts.padded_rows(bounds), dtype=torch.int64)
    empty = torch.ones(len(tokens_P), dtype=torch.bool).index_fill(0, rows, False)
    torch.testing.assert_close(sums[:, rows], (saved[3] * dy).sum(-1).T[:, :used], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logs[:, rows], saved[4][:, :used] * 1.442695040888963)
    assert not sums[:, empty].any() and bool((logs[:, empty] == torch.inf).all())
    blocks = (rows // 128).unique()
    for i, accumulator in enumerate(accumulators):
        if i == 2:
            torch.testing.assert_close(parts.read_accumulator(accumulator, bounds), dv[:used])
            parts.add_to_accumulator(accumulator, -parts.read_accumulator(accumulator, bounds), bounds)
        assert not accumulator.unflatten(1, (-1, 8192))[:, blocks].any()
"""


@needs_triton
def test_triton_kernels_surround_the_main_kernel_in_the_interpreter() -> None:
    interpret(INTERPRETED, str(Path(__file__).parent))
