import pytest
import torch
from plain_gptq import plain_gptq
from torch import Tensor

from golf_lightning.compression.gptq import gptq
from golf_lightning.compression.quantize import RolePrecision, round_to_nearest, sdclip_scale, weighted_error
from golf_lightning.errors import GolfError


def problem(matrices: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights, and Hessians of correlated inputs whose columns differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.05 * torch.randn(matrices, rows, columns, generator=generator)
    latent = torch.randn(matrices, 4 * columns, max(1, columns // 2), generator=generator)
    mixing = torch.randn(matrices, max(1, columns // 2), columns, generator=generator)
    noise = 0.3 * torch.randn(matrices, 4 * columns, columns, generator=generator)
    inputs = (latent @ mixing + noise) * torch.randn(matrices, 1, columns, generator=generator).exp()
    return weight, inputs.transpose(1, 2) @ inputs


@pytest.mark.parametrize("bits, k", [(6, 12.85), (8, 20.0), (3, 6.0)])
@pytest.mark.parametrize("columns, block", [(96, 128), (96, 32), (97, 16), (1, 128)])
def test_error_is_that_of_the_float64_reference(bits, k, columns, block):
    precision = RolePrecision(bits, k)
    weight, hessian = problem(3, 24, columns)
    scale = sdclip_scale("up", weight, precision)
    result = gptq("up", weight, hessian, scale, precision=precision, block=block)
    wanted = plain_gptq(weight, hessian, scale, precision.largest, 0.01)
    error = weighted_error(weight.double(), result.codes.double(), scale.double(), hessian.double())
    best = weighted_error(weight.double(), wanted.double(), scale.double(), hessian.double())
    assert (error <= 1.005 * best + 1e-9).all(), (error / best).tolist()


def test_errors_add_up_to_those_of_the_float64_reference():
    # Single matrices may differ by a code that lies on an edge; over many of them that evens out.
    precision = RolePrecision(6, 12.85)
    weight, hessian = problem(8, 96, 192)
    scale = sdclip_scale("up", weight, precision)
    codes = gptq("up", weight, hessian, scale, precision=precision).codes
    wanted = plain_gptq(weight, hessian, scale, precision.largest, 0.01)
    error = weighted_error(weight.double(), codes.double(), scale.double(), hessian.double())
    best = weighted_error(weight.double(), wanted.double(), scale.double(), hessian.double())
    assert error.sum() <= 1.001 * best.sum()


def test_beats_round_to_nearest_on_the_same_hessian():
    precision = RolePrecision(6, 12.85)
    weight, hessian = problem(4, 32, 128)
    scale = sdclip_scale("up", weight, precision)
    codes = gptq("up", weight, hessian, scale, precision=precision).codes
    nearest = round_to_nearest(weight, scale, precision)
    ratio = weighted_error(weight, codes, scale, hessian) / weighted_error(weight, nearest, scale, hessian)
    assert (ratio < 0.5).all(), ratio.tolist()


def test_white_inputs_leave_nothing_to_correct():
    precision = RolePrecision(6, 12.85)
    weight, _ = problem(2, 16, 40)
    scale = sdclip_scale("up", weight, precision)
    codes = gptq("up", weight, torch.eye(40).expand(2, 40, 40), scale, precision=precision).codes
    assert torch.equal(codes, round_to_nearest(weight, scale, precision))


def test_each_matrix_depends_on_itself_alone():
    precision = RolePrecision(6, 12.85)
    weight, hessian = problem(3, 16, 64)
    scale = sdclip_scale("up", weight, precision)
    together = gptq("up", weight, hessian, scale, precision=precision).codes
    alone = [gptq("up", weight[i, None], hessian[i, None], scale[i, None], precision=precision).codes for i in range(3)]
    error = [weighted_error(weight, codes, scale, hessian) for codes in (together, torch.cat(alone))]
    torch.testing.assert_close(error[0], error[1], rtol=1e-3, atol=0)


def test_the_size_of_the_hessian_does_not_matter():
    precision = RolePrecision(6, 12.85)
    weight, hessian = problem(1, 16, 64)
    scale = sdclip_scale("up", weight, precision)
    small = gptq("up", weight, hessian * 2.0**-60, scale, precision=precision).codes
    large = gptq("up", weight, hessian * 2.0**40, scale, precision=precision).codes
    assert torch.equal(small, large)


def test_dead_inputs_are_rounded_and_disturb_nothing():
    precision = RolePrecision(6, 12.85)
    weight, hessian = problem(2, 16, 48)
    dead = torch.tensor([0, 7, 47])
    hessian[:, dead] = 0
    hessian[:, :, dead] = 0
    scale = sdclip_scale("up", weight, precision)
    codes = gptq("up", weight, hessian, scale, precision=precision).codes
    assert torch.equal(codes[:, :, dead], round_to_nearest(weight, scale, precision)[:, :, dead])
    wanted = plain_gptq(weight, hessian, scale, 31, 0.01)
    error = [weighted_error(weight, c, scale, hessian) for c in (codes, wanted)]
    assert (error[0] <= 1.005 * error[1]).all()


def test_a_hessian_of_zeros_means_round_to_nearest():
    precision = RolePrecision(6, 12.85)
    weight, _ = problem(2, 8, 16)
    scale = sdclip_scale("up", weight, precision)
    result = gptq("up", weight, torch.zeros(2, 16, 16), scale, precision=precision)
    assert torch.equal(result.codes, round_to_nearest(weight, scale, precision))


def test_zero_weights_stay_zero():
    precision = RolePrecision(6, 12.85)
    _, hessian = problem(2, 8, 16)
    weight = torch.zeros(2, 8, 16)
    codes = gptq("down", weight, hessian, sdclip_scale("down", weight, precision), precision=precision).codes
    assert not codes.any()


def test_a_nearly_singular_hessian_gets_more_damping_and_says_so():
    precision = RolePrecision(6, 12.85)
    weight, hessian = problem(2, 8, 64)
    # In float32 the rounding of one huge direction makes the rest of the matrix slightly indefinite.
    direction = torch.randn(64, generator=torch.Generator().manual_seed(3))
    hessian[1] = torch.outer(direction, direction) - 0.02 * direction.square().mean() * torch.eye(64)
    scale = sdclip_scale("up", weight, precision)
    result = gptq("up", weight, hessian, scale, precision=precision)
    assert result.damping[0] == 0.01
    assert result.damping[1] == pytest.approx(0.1)


def test_a_hessian_that_is_no_sum_of_squares_is_refused():
    precision = RolePrecision(6, 12.85)
    weight, hessian = problem(2, 8, 16)
    hessian[1, 0, 1] = hessian[1, 1, 0] = 1e9 * hessian[1].diagonal().mean()
    with pytest.raises(GolfError, match=r"up\[1\] cannot be factorized"):
        gptq("up", weight, hessian, sdclip_scale("up", weight, precision), precision=precision)


def test_a_hessian_that_overflowed_is_refused():
    precision = RolePrecision(6, 12.85)
    weight, hessian = problem(2, 8, 16)
    hessian[0, 3, 3] = float("inf")
    with pytest.raises(GolfError, match="Hessians of up are not finite"):
        gptq("up", weight, hessian, sdclip_scale("up", weight, precision), precision=precision)
