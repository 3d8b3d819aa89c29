"""On a Hopper GPU with quack-kernels: the MLP's products by it and by Triton against float64, compiled and captured."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from golf_lightning.kernels import cute_mlp
from golf_lightning.kernels.backend import chooses_cute, cute_lacks
from golf_lightning.kernels.mlp import hidden_and_slope, mlp, sloped_product
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.warmup import compile_in_place

LACKS = cute_lacks("auto", torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else "a GPU"
pytestmark = pytest.mark.skipif(LACKS is not None, reason=f"needs {LACKS}")

ROUNDED = 2.5e-3
"""Relative error that rounding a result to bfloat16 may leave; 1.66e-3 is the mean of random numbers."""
SHAPES = [(1, 512, 2048), (129, 512, 2048), (1001, 512, 2048), (98_304, 512, 2048), (257, 72, 520), (300, 8, 8)]


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).norm() / expected.norm()).detach())


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def operands(tokens: int, width: int, units: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, expanding matrix, gradient of the output, contracting matrix."""
    x, dout = random(tokens, width), random(tokens, width)
    return x, random(units, width, scale=width**-0.5), dout, random(width, units, scale=width**-0.5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def nan_filled() -> Iterator[None]:
    """New tensors hold NaN until something is written there."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("cute", [True, False])
@pytest.mark.parametrize("tokens, width, units", SHAPES)
def test_every_element_is_as_near_to_float64_as_rounding_allows(
    nan_filled: None, tokens: int, width: int, units: int, cute: bool
) -> None:
    x, up, dout, down = operands(tokens, width, units)
    hidden, slope = hidden_and_slope(x, up, cute)
    dz = sloped_product(dout, down, slope, cute)
    torch.use_deterministic_algorithms(False)  # cuBLAS wants a setting of the environment there
    assert all(bool(out.isfinite().all()) for out in (hidden, slope, dz))
    z = x.double() @ up.double().T
    bent = torch.where(z > 0, z, z / 2)
    assert error(hidden, bent * bent) < ROUNDED
    assert error(slope, torch.where(z > 0, 2 * z, z / 2)) < ROUNDED
    del z, bent
    assert error(dz, dout.double() @ down.double() * slope.double()) < ROUNDED


def test_the_negative_branch_keeps_its_sign_and_zero_stays_zero() -> None:
    x, up = torch.diag(torch.tensor([-2.0, 0.0, 3.0] * 8)).cuda().bfloat16(), torch.ones(24, 24).cuda().bfloat16()
    hidden, slope = hidden_and_slope(x, up, True)
    for row, (unit, derivative) in enumerate([(1.0, -1.0), (0.0, 0.0), (9.0, 6.0)] * 8):
        assert (hidden[row] == unit).all() and (slope[row] == derivative).all()


def test_operators_are_declared_correctly() -> None:
    x, up, dout, down = operands(64, 32, 48)
    torch.library.opcheck(hidden_and_slope, (x, up, True))
    torch.library.opcheck(sloped_product, (dout, down, random(64, 48), True))


def gradients(run: Any, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    out = run(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, weight)]


def test_gradients_of_the_mlp_are_those_of_triton_and_the_same_when_compiled() -> None:
    x, up, dout, down = operands(1001, 512, 2048)
    inputs = [t.requires_grad_() for t in (x, up, down)]

    def run(*given: Tensor) -> Tensor:
        return mlp(*given, backend="triton", cute=True)

    found = gradients(run, inputs, dout)
    for ours, theirs in zip(found, gradients(lambda *x: mlp(*x, backend="triton"), inputs, dout), strict=True):
        assert error(ours, theirs.double()) < ROUNDED
    compiled = gradients(torch.compile(run, fullgraph=True, dynamic=False), inputs, dout)
    for ours, theirs in zip(compiled, found, strict=True):
        assert error(ours, theirs.double()) < ROUNDED


def test_a_compiled_model_is_as_near_to_float64_as_with_triton() -> None:
    config = GPTConfig(layers=4, vocab_size=512, loop_first=1, loop_last=2, lanes_start=3)
    tokens, targets = torch.randint(0, config.vocab_size, (2, 3000), device="cuda")
    cu_seqlens = torch.tensor([0, 900, 901, 2500, 3000] + [3000] * 60, device="cuda", dtype=torch.int32)
    exact = GPT(config, compute_dtype=torch.float64, attention="reference").cuda()
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    exact(tokens, targets, cu_seqlens).sum().backward()
    errors: dict[str, dict[str, float]] = {}
    assert chooses_cute("auto", tokens.device, torch.bfloat16)
    for kernels in ("auto", "triton"):
        model = GPT(config, compute_dtype=torch.bfloat16, kernels=kernels).cuda()  # type: ignore[arg-type]
        model.load_state_dict(exact.state_dict())
        if kernels == "auto":
            compile_in_place(model)
        model(tokens, targets, cu_seqlens).sum().backward()
        pairs = zip(model.named_parameters(), exact.parameters(), strict=True)
        errors[kernels] = {name: error(p.grad, e.grad.double()) for (name, p), e in pairs}  # type: ignore[arg-type, union-attr]
    sizes = {name: parameter.numel() for name, parameter in exact.named_parameters()}
    for name, with_triton in errors["triton"].items():
        # the error of a few sums over all tokens is one draw, 0.003 at times, and not the mean of many
        apart = 4e-3 if sizes[name] < 64 else 1e-3
        assert errors["auto"][name] < 1.5 * with_triton + apart, (name, errors["auto"][name], with_triton)


def test_a_captured_graph_computes_from_what_lies_there_when_it_is_replayed() -> None:
    x, up, dout, down = operands(1001, 512, 2048)
    sloped_product(dout, down, hidden_and_slope(x, up, True)[1], True)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hidden, slope = hidden_and_slope(x, up, True)
        dz = sloped_product(dout, down, slope, True)
    for _ in range(3):
        x.copy_(random(1001, 512))
        dout.copy_(random(1001, 512))
        graph.replay()
        expected = hidden_and_slope(x, up, True)
        assert torch.equal(hidden, expected[0]) and torch.equal(slope, expected[1])
        assert torch.equal(dz, sloped_product(dout, down, slope, True))


def test_they_run_on_the_current_stream() -> None:
    x, up, dout, down = operands(1001, 512, 2048)
    expected = hidden_and_slope(x, up, True)
    expected_dz = sloped_product(dout, down, expected[1], True)
    late_x, late_dout = torch.zeros_like(x), torch.zeros_like(dout)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # longer than everything that another stream could do meanwhile
        late_x.copy_(x)
        late_dout.copy_(dout)
        found = hidden_and_slope(late_x, up, True)
        dz = sloped_product(late_dout, down, found[1], True)
    torch.cuda.synchronize()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip((*found, dz), (*expected, expected_dz), strict=True))


def test_another_number_of_tokens_takes_the_same_kernels() -> None:
    kernels = set()
    for tokens in (1001, 7):
        x, up, dout, down = operands(tokens, 512, 2048)
        hidden, slope = cute_mlp.cute_hidden(x, up)
        first, second = cute_mlp.epilogues()
        options = cute_mlp._options(cute_mlp.HIDDEN_TILES)
        kernels.add(first.gemm(x, up, hidden, epi_args={"slope": slope}, **options).compiled_fn)
        options = cute_mlp._options(cute_mlp.PRODUCT_TILES)
        kernels.add(second.gemm(dout, down, hidden, slope, epi_args={}, b_kn=True, **options).compiled_fn)
    assert len(kernels) == 2
