"""The mathematics of the fused operations on a CPU: their formulas, gradients, shapes for tracing, odd sizes.

The Triton kernels compute the same functions; tests/gpu compares them, and Triton's interpreter runs them here where
the package triton is installed.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_fw_bw_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode
from without_gpu import interpret, needs_triton

from golf_lightning.errors import GolfError
from golf_lightning.kernels import mixing
from golf_lightning.kernels.backend import choose_kernels
from golf_lightning.kernels.cross_entropy import IGNORED, head_nll, loss_and_gradient, softcapped_nll
from golf_lightning.kernels.heads import (
    exclude_backward_op,
    exclude_op,
    exclude_self,
    prepare_backward_op,
    prepare_heads,
    prepare_op,
)
from golf_lightning.kernels.mixing import Blend, Wanted, mix
from golf_lightning.kernels.mixing_ops import mix_backward_op, mix_op, norm_backward_op, norm_op
from golf_lightning.kernels.mlp import (
    hidden_and_slope,
    mlp,
    product,
    product_op,
    sloped_product,
)
from golf_lightning.kernels.residual import add_branches, add_product_op
from golf_lightning.model.block import exclude_self as plain_exclude_self
from golf_lightning.model.block import rms_norm
from golf_lightning.model.rotary import rotary_table, rotate


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).requires_grad_()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_fused_mlp_has_the_value_and_gradients_of_the_formula() -> None:
    inputs = random(5, 3), random(7, 3), random(3, 7)
    weight = torch.randn(5, 3, dtype=torch.float64)
    results = []
    for backend in ("triton", "reference"):
        out = mlp(*inputs, backend=backend)
        results.append((out, *torch.autograd.grad((out * weight).sum(), inputs)))
    torch.testing.assert_close(*results)


def test_fused_mlp_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda *x: mlp(*x, backend="triton"), (random(4, 3), random(5, 3), random(3, 5)))


def test_fused_mlp_computes_only_the_gradients_that_are_asked_for() -> None:
    x, up, down = random(5, 3), random(7, 3), random(3, 7)
    (dx,) = torch.autograd.grad(mlp(x, up.detach(), down.detach(), backend="triton").sum(), x)
    (expected,) = torch.autograd.grad(mlp(x, up, down).sum(), x)
    torch.testing.assert_close(dx, expected)


TARGETS = torch.tensor([3, 0, IGNORED, 10, 7, IGNORED])


def test_fused_loss_has_the_value_and_gradient_of_the_formula() -> None:
    logits, weight = random(6, 11, scale=40), torch.randn(6, dtype=torch.float64)
    results = []
    for backend in ("triton", "reference"):
        nll = softcapped_nll(logits, TARGETS, 30.0, backend=backend)
        results.append((nll, *torch.autograd.grad((nll * weight).sum(), logits)))
    torch.testing.assert_close(*results)


def test_fused_head_has_the_value_and_gradients_of_the_formula() -> None:
    inputs, weight = (random(6, 4, scale=3), random(11, 4, scale=3)), torch.randn(6, dtype=torch.float64)
    results = []
    for backend in ("triton", "reference"):
        nll = head_nll(*inputs, TARGETS, 30.0, backend=backend)
        results.append((nll, *torch.autograd.grad((nll * weight).sum(), inputs)))
    torch.testing.assert_close(*results)


def test_loss_without_gradients_keeps_none() -> None:
    _, gradient = loss_and_gradient(torch.randn(6, 11), TARGETS, 30.0, False)
    assert gradient.numel() == 0


@pytest.mark.parametrize("trained", [True, False])
def test_fused_loss_computes_gradients_only_in_training(trained: bool) -> None:
    seen: list[bool] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.golf.softcapped_nll.default:
                seen.append(args[3])
            return func(*args, **(kwargs or {}))

    with torch.set_grad_enabled(trained), Watch():
        head_nll(random(6, 4), random(11, 4), TARGETS, 30.0, backend="triton")
        softcapped_nll(random(6, 11), TARGETS, 30.0, backend="triton")
    assert seen == [trained, trained]


def test_fused_loss_of_half_precision_logits_is_float32_and_its_gradient_is_not() -> None:
    nll, gradient = loss_and_gradient(torch.randn(6, 11).bfloat16(), TARGETS, 30.0, True)
    assert (nll.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)


# T = 6 tokens of which the last is padding, 4 query and 2 key/value heads of 8, 4 or 0 dimensions rotated
BOUNDS = torch.tensor([0, 2, 5, 5], dtype=torch.int32)


def head_inputs(rope_dims: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cos, sin = rotary_table(6, rope_dims, 100.0).double().unbind(0)
    return random(6, 8 * 8), cos, sin, random(4)


@pytest.mark.parametrize("rope_dims", [4, 8, 0])
def test_fused_head_preparation_has_the_values_and_gradients_of_the_formula(rope_dims: int) -> None:
    qkv, cos, sin, gain = head_inputs(rope_dims)
    found = prepare_heads(qkv, cos, sin, gain, BOUNDS, 8)
    q, k, v = (x.unflatten(-1, (-1, 8)) for x in qkv.split([32, 16, 16], dim=-1))
    q, k = rotate(rms_norm(q), cos, sin) * gain[:, None], rotate(rms_norm(k), cos, sin)
    weights = [torch.randn_like(x) for x in found]
    gradients = []
    for outputs in (found, (q, k, v, v)):
        total = sum((x * w)[:5].sum() for x, w in zip(outputs, weights, strict=True))
        gradients.append((*(x[:5] for x in outputs), *torch.autograd.grad(total, (qkv, gain))))
    torch.testing.assert_close(*gradients)


def test_padding_rows_of_heads_are_zero_even_where_attention_leaves_nothing_sensible() -> None:
    qkv, cos, sin, gain = head_inputs(4)
    qkv = qkv.detach().index_fill(0, torch.tensor([5]), torch.nan).requires_grad_()
    q, k, v, v_again = prepare_heads(qkv, cos, sin, gain, BOUNDS, 8)
    y = (q + k.repeat(1, 2, 1)).index_fill(0, torch.tensor([5]), torch.nan)
    out = exclude_self(y, v_again, BOUNDS, exclude=True)
    assert not any(x[5].any() for x in (q, k, v, out))
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    assert gradient.isfinite().all() and not gradient[5].any() and gradient[:5].any()


def test_fused_exclusion_has_the_value_and_gradients_of_the_formula() -> None:
    inputs = random(6, 4, 8), random(6, 2, 8)
    weight = torch.randn(5, 4, 8, dtype=torch.float64)
    results = []
    for out in (exclude_self(*inputs, BOUNDS, exclude=True), plain_exclude_self(*inputs)):
        results.append((out[:5], *torch.autograd.grad((out[:5] * weight).sum(), inputs)))
    torch.testing.assert_close(*results)


def test_no_exclusion_passes_attention_through() -> None:
    y, v = random(6, 4, 8), random(6, 2, 8)
    out = exclude_self(y, v, BOUNDS, exclude=False)
    dy, dv = torch.autograd.grad(out.sum(), (y, v))
    assert torch.equal(out[:5], y[:5]) and dy.sum() == 5 * 32 and not dv.any()


# Streams and weights of 5 columns; a layer's entry, one with a skip, two lanes, and the same stream twice.
def entry(x: list[Tensor], w: Tensor) -> list[Wanted]:
    return [Wanted(Blend(((w[0], x[0]), (w[1], x[1]))), True, 0.7)]


def entry_after_skip(x: list[Tensor], w: Tensor) -> list[Wanted]:
    gated = Blend(((w[0], x[0]), (1 - w[0], Blend(((w[1], x[2]),)))))
    return [Wanted(Blend(((w[2], gated), (w[3], x[1]))), True, 0.7)]


def two_lanes(x: list[Tensor], w: Tensor) -> list[Wanted]:
    joined = [Blend(((w[n, 0], x[n]), (w[n, 1], x[2]), (w[n, 2], x[3]))) for n in range(2)]
    gated = Blend(((w[2], joined[0]), (w[3], x[4])))
    entered = Blend(((w[4], gated), (w[5], x[5])))
    return [Wanted(gated, True), Wanted(entered, False, 0.7), Wanted(joined[1], True, 0.3)]


def two_lanes_of_numbers(x: list[Tensor], w: Tensor) -> list[Wanted]:
    joined = [Blend(((w[n, 0], x[n]), (w[n, 1], x[2]), (1.0, x[3]))) for n in range(2)]
    gated = Blend(((w[2], joined[0]), (1 - w[2], Blend(((w[3], x[4]),)))))
    entered = Blend(((w[4], gated), (w[5], x[5])))
    return [Wanted(gated, True), Wanted(entered, False, 0.7), Wanted(joined[1], True, 0.3)]


def entry_of_lanes(x: list[Tensor], w: Tensor) -> list[Wanted]:
    lane = Blend(((0.5, x[0]), (w[0, 0], x[1])))
    return [Wanted(Blend(((w[1], Blend(((w[2], lane), (w[3], x[2])))), (w[4], lane))), True, 0.7), Wanted(lane, True)]


def plain_tensors(x: list[Tensor], w: Tensor) -> list[Wanted]:
    return [Wanted(x[0], True), Wanted(Blend(((0.5, x[0]), (w[0], x[0]))), False, 0.6), Wanted(x[1], True, 0.3)]


MIXTURES = pytest.mark.parametrize(
    "mixture", [entry, entry_after_skip, two_lanes, two_lanes_of_numbers, entry_of_lanes, plain_tensors]
)


@MIXTURES
def test_fused_mixing_has_the_values_and_gradients_of_the_formula(mixture: Any) -> None:
    inputs = [random(6, 5) for _ in range(6)] + [random(6, 5)]
    results = []
    for backend in ("triton", "reference"):
        found = mix(mixture(inputs[:6], inputs[6]), again_TD=inputs[1], backend=backend)
        total = sum((x * (n + x.detach().cos())).sum() for n, x in enumerate(found))
        results.append((*found, *torch.autograd.grad(total, inputs, materialize_grads=True)))
    torch.testing.assert_close(*results)


def plans_of(mixture: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Any]]:
    seen: list[tuple[Tensor, Any]] = []
    apply = mixing.fused_mix
    monkeypatch.setattr(mixing, "fused_mix", lambda w, plan, *rest: seen.append((w, plan)) or apply(w, plan, *rest))
    mix(mixture([random(6, 5) for _ in range(6)], random(6, 5)), backend="triton")
    return seen


def test_weights_of_one_number_are_given_as_numbers_and_those_of_one_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ((weights, plan),) = plans_of(two_lanes_of_numbers, monkeypatch)
    # A number a column have the gate, the skip, and the entry's two; one of each lane's three terms has the weight 1.
    assert plan.columns == 4 and weights.shape == (4 * 5 + 4,)
    assert plan.places == (4, 5, -1, 0, 1, 2, 3, 6, -1, 7)


def test_a_tensor_wanted_as_it_is_has_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    ((weights, plan),) = plans_of(lambda x, w: [Wanted(x[0], True, 0.3)], monkeypatch)
    assert weights.shape == (0,) and plan.places == (-1,)


def read_by_three(x: list[Tensor], w: Tensor) -> list[Wanted]:
    sum_of_two = Blend(((1.0, x[0]), (1.0, x[3])))
    return [Wanted(sum_of_two, True, 0.7, 3), Wanted(Blend(((w[0], sum_of_two), (0.5, x[2]))), False, 0.6, 2)]


@pytest.mark.parametrize(
    "mixture", [entry, entry_after_skip, two_lanes, two_lanes_of_numbers, plain_tensors, read_by_three]
)
def test_joining_with_constant_weights_has_the_values_and_gradients_of_the_formula(mixture: Any) -> None:
    inputs, weights = [random(6, 5) for _ in range(6)], torch.randn(6, 5, dtype=torch.float64)
    results = []
    for frozen in (True, False):
        backend: Any = "triton" if frozen else "reference"
        found = mix(mixture(inputs, weights), again_TD=inputs[1], backend=backend, frozen=frozen)
        total = sum((x * (n + x.detach().cos())).sum() for n, x in enumerate(found))
        results.append((*found, *torch.autograd.grad(total, inputs, materialize_grads=True)))
    torch.testing.assert_close(*results)


def test_fused_mixing_compiles_into_one_graph() -> None:
    def loss(*inputs: Tensor) -> Tensor:
        found = mix(two_lanes(list(inputs[:6]), inputs[6]), backend="triton")
        return sum((x * (n + 2)).sin().sum() for n, x in enumerate(found))  # type: ignore[return-value]

    inputs = [random(6, 5) for _ in range(7)]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(*(torch.autograd.grad(f(*inputs), inputs) for f in (compiled, loss)))


def test_a_mixture_of_one_stream_compiles_without_gradients() -> None:
    """Torch 2.11 takes the arguments of such a function for one more than they are."""

    def norms(x: Tensor, weight: Tensor) -> Tensor:
        return mix([Wanted(Blend(((weight[0], x),)), True, 0.5)], backend="triton")[1]

    inputs = random(6, 5), random(1, 5)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(norms, backend="aot_eager", fullgraph=True)(*inputs), norms(*inputs))


def test_kept_apart_product_has_the_gradients_of_a_product() -> None:
    assert torch.autograd.gradcheck(lambda *x: product(*x, backend="triton"), (random(4, 3), random(5, 3)))


def residual_layer(x: Tensor, o: Tensor, up: Tensor, down: Tensor, backend: Any) -> Tensor:
    (u,) = mix([Wanted(Blend(((2.0, x), (o[0, 0], x.tanh()))), True)], backend=backend)
    return add_branches(u, x.sin(), o, 0.7, up, down, backend=backend)


def test_products_added_in_place_have_the_value_and_gradients_of_the_formula() -> None:
    inputs = random(6, 3), random(3, 3), random(7, 3), random(3, 7)
    weight = torch.randn(6, 3, dtype=torch.float64)
    results = []
    for backend in ("triton", "reference"):
        out = residual_layer(*inputs, backend)
        results.append((out, *torch.autograd.grad((out * weight).sum(), inputs)))
    torch.testing.assert_close(*results)


# Torch's compiler warns about itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_products_added_in_place_compile_without_a_copy() -> None:
    def two_layers(x: Tensor, *weights: Tensor) -> Tensor:
        for _ in range(2):
            x = residual_layer(x, *weights, "triton")
        return x.sum()

    inputs = random(6, 3), random(3, 3), random(7, 3), random(3, 7)
    compiled = torch.compile(two_layers, fullgraph=True)
    _, (forward, _) = run_fw_bw_and_get_code(lambda: compiled(*inputs))
    assert forward.count("golf.add_product.default(") == 4
    assert "clone" not in forward and "copy_" not in forward


def test_operators_are_declared_correctly() -> None:
    logits, targets = torch.randn(6, 11), TARGETS
    torch.library.opcheck(loss_and_gradient, (logits, targets, 30.0, True))
    torch.library.opcheck(loss_and_gradient, (logits, targets, 30.0, False))
    x, up, down = torch.randn(5, 3), torch.randn(7, 3), torch.randn(3, 7)
    torch.library.opcheck(hidden_and_slope, (x, up))
    torch.library.opcheck(sloped_product, (x, down, torch.randn(5, 7)))
    torch.library.opcheck(product_op, (x, up))
    torch.library.opcheck(add_product_op, (x, torch.randn(5, 7), down))
    qkv, cos, sin, gain = (tensor.detach().float() for tensor in head_inputs(4))
    q, k, v = prepare_op(qkv, cos, sin, gain, BOUNDS, 8)
    torch.library.opcheck(prepare_op, (qkv, cos, sin, gain, BOUNDS, 8))
    torch.library.opcheck(prepare_backward_op, (q, k, v, v + 1, qkv, cos, sin, gain, BOUNDS))
    torch.library.opcheck(exclude_op, (q, v, BOUNDS, True))
    torch.library.opcheck(exclude_backward_op, (q, q, v, BOUNDS, True))
    mixing = ([x, x + 1], torch.randn(7), [0, 2, -1, 1], 2, [3, 6], [True, False], [0.7, 0.3])
    torch.library.opcheck(mix_op, mixing)
    torch.library.opcheck(mix_op, ([x], x.new_empty(0), [-1], 0, [1], [True], [0.7]))
    torch.library.opcheck(norm_op, (x, 0.7))
    torch.library.opcheck(norm_backward_op, (x, x + 1, x - 1, x[:, 0].exp(), 0.7))
    torch.library.opcheck(mix_backward_op, ([x, x + 2, x - 1], *mixing, -1))
    torch.library.opcheck(mix_backward_op, ([x, x + 2, x - 1, x + 3], *mixing, 1))


def test_fused_operations_compile_into_one_graph() -> None:
    def loss(x: Tensor, up: Tensor, down: Tensor, head: Tensor) -> Tensor:
        return head_nll(mlp(x, up, down, backend="triton"), head, TARGETS, 30.0, backend="triton").sum()

    inputs = random(6, 4), random(7, 4), random(4, 7), random(11, 4)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    gradients = [torch.autograd.grad(f(*inputs), inputs) for f in (compiled, loss)]
    torch.testing.assert_close(*gradients)


def test_auto_is_the_reference_on_a_cpu() -> None:
    assert choose_kernels("auto", torch.device("cpu"), torch.bfloat16) == "reference"


@pytest.mark.parametrize("major, chosen", [(8, "reference"), (9, "triton"), (10, "triton"), (12, "reference")])
def test_auto_is_triton_where_its_tiles_fit(monkeypatch: pytest.MonkeyPatch, major: int, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert choose_kernels("auto", torch.device("cuda"), torch.bfloat16) == chosen


def test_triton_is_refused_on_a_cpu() -> None:
    with pytest.raises(GolfError, match="compute capability 9"):
        choose_kernels("triton", torch.device("cpu"), torch.bfloat16)


INTERPRETED = """
import torch
from golf_lightning.kernels import heads, mixing_ops, triton_heads, triton_loss, triton_mixing, triton_mlp
from golf_lightning.kernels import triton_heads_backward
from golf_lightning.kernels.cross_entropy import IGNORED, loss_and_gradient
from golf_lightning.kernels.mlp import hidden_and_slope, sloped_product
from golf_lightning.model.rotary import rotary_table
torch.manual_seed(0)
tiles = triton_mlp.Tiles(16, 32, 16, 4, 2)
MIXTURES = (
    (2, [0, 1], 2, [3], [True], [0.7]),
    (3, [0, -1, 1], 1, [7], [True], [0.7]),
    (1, [-1], 0, [1], [False], [0.7]),
    (6, [4, 5, 0, 1, 2, 3, -1, 6, 7], 4, [0b11101, 0b1100000, 0b1110], [True, False, True], [0.0, 0.7, 0.3]),
    (4, [0, 1, 2, 3], 0, [15], [False], [1.0]),
)
for tokens, width, units in ((50, 40, 72), (16, 16, 32), (1, 8, 8)):
    x, up, down, dout = (torch.randn(*s) for s in ((tokens, width), (units, width), (width, units), (tokens, width)))
    expected = hidden_and_slope(x, up)
    torch.testing.assert_close(triton_mlp.launch_hidden(x, up, 0.5, tiles), expected, rtol=1e-4, atol=1e-4)
    product = triton_mlp.launch_product(dout, down, expected[1], tiles)
    torch.testing.assert_close(product, sloped_product(dout, down, expected[1]), rtol=1e-4, atol=1e-4)
for tokens, vocabulary in ((7, 50), (3, 1000)):
    logits, targets = torch.randn(tokens, vocabulary) * 30, torch.randint(0, vocabulary, (tokens,))
    targets[1] = IGNORED
    found = triton_loss.launch(logits, targets, 30.0, True, ignored=IGNORED)
    torch.testing.assert_close(found, loss_and_gradient(logits, targets, 30.0, True), rtol=1e-5, atol=1e-5)
for tokens, used, rope_dims, query_heads, kv_heads in ((21, 19, 4, 6, 3), (8, 8, 0, 4, 2), (3, 1, 8, 2, 1)):
    cu_seqlens = torch.tensor([0, used // 2, used, used], dtype=torch.int32)
    cos, sin = rotary_table(tokens, rope_dims, 100.0).unbind(0)
    qkv, gain = torch.randn(tokens, (query_heads + 2 * kv_heads) * 8), torch.randn(query_heads)
    q, k, v = heads.prepare_op(qkv, cos, sin, gain, cu_seqlens, 8)
    found = triton_heads.launch_prepare(qkv, cos, sin, gain, cu_seqlens, 8, heads.NORM_EPS)
    torch.testing.assert_close(found, (q, k, v))
    dq, dk, dv = (torch.randn_like(x) for x in (q, k, v))
    given = (dq, dk, dv, torch.randn_like(v), qkv, cos, sin, gain, cu_seqlens)
    dqkv, parts = triton_heads_backward.launch_prepare_backward(*given, heads.NORM_EPS, 8, 8)
    expected = heads.prepare_backward_op(*given)
    torch.testing.assert_close((dqkv, parts.sum(0)), (expected[0], expected[1].sum(0)))
    for exclude in (True, False):
        found = triton_heads.launch_exclude(dq, v, cu_seqlens, exclude, 1e-12)
        torch.testing.assert_close(found, heads.exclude_op(dq, v, cu_seqlens, exclude))
        found = triton_heads_backward.launch_exclude_backward(q, dq, v, cu_seqlens, exclude, 1e-12)
        inside = slice(used)
        expected = heads.exclude_backward_op(q, dq, v, cu_seqlens, exclude)
        torch.testing.assert_close([x[inside] for x in found], [x[inside] for x in expected])
for tokens, width in ((9, 24), (1, 32)):
    x, dn, dx = torch.randn(3, tokens, width)
    n, inverse = mixing_ops.norm_op(x, 0.7)
    torch.testing.assert_close(triton_mixing.launch_norm(x, 0.7, heads.NORM_EPS), (n, inverse))
    expected = mixing_ops.norm_backward_op(dn, dx, n, inverse, 0.7)
    torch.testing.assert_close(triton_mixing.launch_norm_backward(dn, dx, n, inverse, 0.7), expected)
    for count, places, columns, *sums in MIXTURES:
        streams = list(torch.randn(count, tokens, width))
        weights = torch.randn(columns * width + 1 + max(places) - columns)
        plan = (streams, weights, places, columns, *sums)
        expected = mixing_ops.mix_op(*plan)
        torch.testing.assert_close(triton_mixing.launch_mix(*plan, heads.NORM_EPS), expected)
        for again in (-1, count - 1):
            grads = [torch.randn_like(x) for x in expected]
            grads += [torch.randn(tokens, width)] * (again >= 0)
            *dexpected, whole = mixing_ops.mix_backward_op(grads, *plan, again)
            for rows in (1, 4):
                *dx, parts = triton_mixing.launch_mix_backward(grads, *plan, again, heads.NORM_EPS, 2, rows)
                found = (*dx, parts.sum(0))
                torch.testing.assert_close(found, (*dexpected, whole.sum(0)), rtol=1e-4, atol=1e-5)
"""


@needs_triton
def test_triton_kernels_compute_the_same_in_the_interpreter() -> None:
    interpret(INTERPRETED)
