"""The Triton kernels and the whole fast path on a GPU against float64."""

import pytest
import torch
from torch import Tensor

from golf_lightning.kernels.cross_entropy import IGNORED, head_nll, loss_and_gradient, softcapped_nll
from golf_lightning.kernels.mixing_ops import mix_backward_op, mix_op, norm_backward_op, norm_op
from golf_lightning.kernels.mlp import hidden_and_slope, mlp, sloped_product
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9,
    reason="needs a GPU of compute capability 9",
)
HALF_PRECISION = 6e-3
"""Relative error that rounding operands and results to bfloat16 may leave."""


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected.double()).norm() / expected.double().norm()).detach())


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16().requires_grad_()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(1000, 512, 2048), (129, 64, 72), (1, 8, 8), (4096, 192, 520)])
def test_mlp_and_its_gradients(shape: tuple[int, int, int]) -> None:
    tokens, width, units = shape
    inputs = random(tokens, width), random(units, width, scale=width**-0.5), random(width, units, scale=units**-0.5)
    weight = torch.randn(tokens, width, device="cuda").bfloat16()
    out = mlp(*inputs, backend="triton")
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    expected = mlp(*doubles)
    assert error(out, expected) < HALF_PRECISION
    found = torch.autograd.grad(out, inputs, weight)
    for ours, theirs in zip(found, torch.autograd.grad(expected, doubles, weight.double()), strict=True):
        assert error(ours, theirs) < HALF_PRECISION


# Place of each weight among those given, how many of these have a number a column; masks of values in each sum, whether
# it is written, factor of its norm: a layer's entry, one after a skip, and the entries of layers with two lanes, first
# and later; 1,001 rows divide into no block.
MIXTURES = {
    "entry": (2, [0, 1], 2, [0b11], [True], [0.7]),
    "skip": (3, [0, 1, 2], 3, [0b111], [True], [0.7]),
    "first lanes": (3, [0, 1, 2, 3, -1], 4, [0b11, 0b1100, 0b1], [True, False, False], [0.0, 0.7, 0.7]),
    "lanes": (
        6, [4, 5, 6, 0, 1, 2, 3, 7, 8, 9], 4, [0b111, 0b1001000, 0b10010000, 0b100110], [False, True, False, True],
        [0.0, 0.0, 0.7, 0.3],
    ),
    "last lanes": (5, [2, 3, 4, 0, 1, 5, 6, 7], 2, [0b111, 0b101000, 0b10110], [True, False, True], [0.0, 0.7, 0.3]),
    "join": (4, [0, 1, 2, 3], 0, [0b1111], [False], [1.0]),
    "norm": (1, [-1], 0, [0b1], [False], [1.0]),
}  # fmt: skip


@pytest.mark.parametrize("width", [512, 96])
@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_streams_and_their_gradients(name: str, width: int) -> None:
    count, places, columns, *sums = MIXTURES[name]
    streams = [random(1001, width).detach() for _ in range(count)]
    weights = torch.randn(columns * width + 1 + max(places) - columns, device="cuda")
    doubles = [x.cpu().double() for x in streams], weights.cpu().double()
    plan = places, columns, *sums
    found, expected = mix_op(streams, weights, *plan), mix_op(*doubles, *plan)
    grads = [torch.randn_like(x) for x in (*found, streams[0])]
    *dfound, parts = mix_backward_op(grads, streams, weights, *plan, 0)
    *dexpected, whole = mix_backward_op([x.cpu().double() for x in grads], *doubles, *plan, 0)
    pairs = zip((*found, *dfound, parts.sum(0)), (*expected, *dexpected, whole.sum(0)), strict=True)
    assert max(error(ours.cpu(), theirs) for ours, theirs in pairs if theirs.numel()) < HALF_PRECISION


def test_norm_and_its_gradient() -> None:
    x, dn, dx = (random(1001, 512).detach() for _ in range(3))
    n, inverse = norm_op(x, 0.7)
    n64, inverse64 = norm_op(x.cpu().double(), 0.7)
    assert error(n.cpu(), n64) < HALF_PRECISION and error(inverse.cpu(), inverse64) < 1e-5
    found = norm_backward_op(dn, dx, n, inverse, 0.7)
    assert error(found.cpu(), norm_backward_op(dn.cpu().double(), dx.cpu().double(), n64, inverse64, 0.7)) < 6e-3


@pytest.mark.parametrize("shape", [(300, 8192), (17, 1000), (5, 50), (3, 20_000)])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_loss_and_its_gradient(shape: tuple[int, int], scale: float) -> None:
    logits = random(*shape, scale=scale)
    targets = torch.randint(0, shape[1], shape[:1], device="cuda")
    targets[1] = IGNORED
    weight = torch.rand(shape[0], device="cuda")
    nll = softcapped_nll(logits, targets, 30.0, backend="triton")
    double = logits.detach().double().requires_grad_()
    expected = softcapped_nll(double, targets, 30.0)
    assert nll[1] == 0
    assert error(nll, expected) < 1e-5
    (found,) = torch.autograd.grad(nll, logits, weight)
    (theirs,) = torch.autograd.grad(expected, double, weight.double())
    assert not found[1].any()
    assert error(found, theirs) < HALF_PRECISION


def test_head_and_its_gradients() -> None:
    inputs = random(500, 128), random(1000, 128)
    targets = torch.randint(0, 1000, (500,), device="cuda")
    weight = torch.rand(500, device="cuda")
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    found = torch.autograd.grad(head_nll(*inputs, targets, 30.0, backend="triton"), inputs, weight)
    expected = torch.autograd.grad(head_nll(*doubles, targets, 30.0), doubles, weight.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert error(ours, theirs) < 2 * HALF_PRECISION


def test_operators_are_declared_correctly() -> None:
    x, up, down = (torch.randn(*shape, device="cuda").bfloat16() for shape in ((64, 32), (48, 32), (32, 48)))
    torch.library.opcheck(hidden_and_slope, (x, up))
    torch.library.opcheck(sloped_product, (x, down, torch.randn(64, 48, device="cuda").bfloat16()))
    targets = torch.randint(0, 48, (64,), device="cuda")
    torch.library.opcheck(loss_and_gradient, (torch.randn(64, 48, device="cuda").bfloat16(), targets, 30.0, True))


def test_fast_path_of_the_model_is_as_close_to_float64_as_the_reference_path() -> None:
    config = GPTConfig(layers=7, vocab_size=512, loop_first=2, loop_last=3, lanes_start=5)
    tokens, targets = torch.randint(0, config.vocab_size, (2, 3000), device="cuda")
    cu_seqlens = torch.tensor([0, 900, 901, 2500, 2900] + [2900] * 60, device="cuda", dtype=torch.int32)
    targets[2900:] = IGNORED
    exact = GPT(config, compute_dtype=torch.float64, attention="reference").cuda()
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    exact.recurrent = True
    errors: dict[str, dict[str, float]] = {}
    exact(tokens, targets, cu_seqlens).sum().backward()
    for backend in ("reference", "triton"):
        model = GPT(config, compute_dtype=torch.bfloat16, kernels=backend, attention="auto").cuda()  # type: ignore[arg-type]
        model.load_state_dict(exact.state_dict())
        model.recurrent = True
        model(tokens, targets, cu_seqlens).sum().backward()
        pairs = zip(model.named_parameters(), exact.parameters(), strict=True)
        errors[backend] = {name: error(p.grad, e.grad) for (name, p), e in pairs}
    for name, reference in errors["reference"].items():
        assert errors["triton"][name] < 1.3 * reference + 1e-3, (name, errors["triton"][name], reference)
