import pytest
import torch

from golf_lightning.optim.newton_schulz import COEFFICIENTS, normalize_rows, orthogonalize


def with_singular_values(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64)).Q
    return (left * values) @ right.T


@pytest.mark.parametrize("rows, columns", [(16, 40), (40, 16), (16, 16)])
@pytest.mark.parametrize("name, lowest, highest", [("quintic", 0.68, 1.21), ("polar_express", 0.85, 1.15)])
def test_singular_values_end_in_the_band(name: str, lowest: float, highest: float, rows: int, columns: int) -> None:
    x = with_singular_values(torch.logspace(-2.5, 0, 16, dtype=torch.float64), rows, columns)
    after = torch.linalg.svdvals(orthogonalize(x[None], COEFFICIENTS[name], torch.float64))
    assert lowest < after.min() < after.max() < highest


def test_singular_vectors_stay() -> None:
    x = with_singular_values(torch.linspace(0.2, 1, 6, dtype=torch.float64), 6, 9)
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    core = left.T @ orthogonalize(x[None], COEFFICIENTS["quintic"], torch.float64)[0] @ right.T
    assert (core - core.diag().diag()).abs().max() < 1e-12


def test_polynomial_acts_on_each_singular_value() -> None:
    x = with_singular_values(torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), 3, 5)
    expected = torch.linalg.svdvals(x) / torch.linalg.svdvals(x).square().sum().sqrt()
    for a, b, c in COEFFICIENTS["polar_express"]:
        expected = a * expected + b * expected**3 + c * expected**5
    after = torch.linalg.svdvals(orthogonalize(x[None], COEFFICIENTS["polar_express"], torch.float64)[0])
    torch.testing.assert_close(after, expected.sort(descending=True).values, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(3, 8, 16), (3, 16, 8)])
def test_matrices_of_a_bank_do_not_touch_each_other(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    alone = orthogonalize(x[1:2], COEFFICIENTS["quintic"], torch.float64)
    torch.testing.assert_close(orthogonalize(x, COEFFICIENTS["quintic"], torch.float64)[1:2], alone, rtol=0, atol=1e-12)


def test_scale_of_the_input_does_not_matter() -> None:
    x = torch.randn(2, 8, 12)
    large = orthogonalize(x * 1e4, COEFFICIENTS["quintic"], torch.float32)
    torch.testing.assert_close(orthogonalize(x, COEFFICIENTS["quintic"], torch.float32), large, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_bfloat16_stays_near_the_band(name: str) -> None:
    after = orthogonalize(torch.randn(2, 32, 96), COEFFICIENTS[name], torch.bfloat16)
    assert after.dtype == torch.bfloat16
    values = torch.linalg.svdvals(after.float())
    assert 0.6 < values.min() < values.max() < 1.3


def test_zero_matrices_stay_zero() -> None:
    assert not orthogonalize(torch.zeros(1, 4, 6), COEFFICIENTS["polar_express"], torch.bfloat16).any()
    assert not normalize_rows(torch.zeros(1, 4, 6)).any()


def test_rows_get_norm_one() -> None:
    rows = normalize_rows(torch.randn(3, 5, 7, dtype=torch.float64) * 100)
    torch.testing.assert_close(rows.square().sum(-1), torch.ones(3, 5, dtype=torch.float64))
