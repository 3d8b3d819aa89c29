"""Weighted sums with their norms: values and gradients against the formula in float64, and in Triton's interpreter."""

import pytest
import torch
from torch import Tensor
from without_gpu import interpret, needs_triton

from golf_lightning.kernels.joining import join
from golf_lightning.model.block import rms_norm

TOKENS, WIDTH = 5, 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


WEIGHTS = {"plain": None, "by column": WIDTH, "by term": 1}


@pytest.mark.parametrize("weighted", WEIGHTS)
@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("readers", [0, 1, 3])
def test_values_and_gradients_are_those_of_the_formula(terms: int, readers: int, weighted: str) -> None:
    inputs = [random(TOKENS, WIDTH).requires_grad_() for _ in range(terms)]
    columns = WEIGHTS[weighted]
    weights = None if columns is None else random(terms, columns)
    factors = random(1 + readers, TOKENS, WIDTH)
    u, *read = join(inputs, weights, scale=0.7, readers=readers)
    assert len(read) == readers
    expected = sum(x if weights is None else weights[i] * x for i, x in enumerate(inputs))
    assert isinstance(expected, Tensor)
    norm = rms_norm(expected) * 0.7
    torch.testing.assert_close([u, *read], [expected, *[norm] * readers])
    total = (factors[0] * u).sum() + sum((factors[i] * n).sum() for i, n in enumerate(read, start=1))
    wanted = (factors[0] * expected).sum() + (factors[1:] * norm).sum()
    torch.testing.assert_close(torch.autograd.grad(total, inputs), torch.autograd.grad(wanted, inputs))


def test_only_terms_that_ask_get_a_gradient_and_the_norm_alone_may_be_read() -> None:
    x, still = random(TOKENS, WIDTH).requires_grad_(), random(TOKENS, WIDTH)
    _, read = join((x, still), random(2, WIDTH), scale=2.0, readers=1)
    (dx,) = torch.autograd.grad(read.sum(), x)
    assert dx.any() and still.grad is None


def test_nothing_is_computed_backward_where_no_term_asks() -> None:
    u, read = join((random(TOKENS, WIDTH), random(TOKENS, WIDTH)), scale=1.0, readers=1)
    assert not u.requires_grad and not read.requires_grad


INTERPRETED = """
import torch
from golf_lightning.kernels import joining, triton_joining
torch.manual_seed(0)
for terms, weights, readers in ((1, None, 2), (2, torch.randn(2, 24), 3), (3, torch.randn(3, 1), 0), (2, None, 1)):
    xs = [torch.randn(13, 24) for _ in range(terms)]
    expected = joining.forward(xs, weights, 0.7, readers > 0)
    found = triton_joining.launch_join(xs, weights, 0.7, readers > 0, joining.NORM_EPS)
    torch.testing.assert_close(found, expected)
    for du in (torch.randn(13, 24), None)[: 1 if not readers else 2]:
        given = (du, [torch.randn(13, 24) for _ in range(readers)], found[0], weights, 0.7, [True, False, True][:terms])
        expected = joining.backward(*given)
        torch.testing.assert_close(triton_joining.launch_join_backward(*given, joining.NORM_EPS), expected)
"""


@needs_triton
def test_triton_kernels_compute_the_same_in_the_interpreter() -> None:
    interpret(INTERPRETED)
