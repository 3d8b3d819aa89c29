import pytest
import torch

from golf_lightning.compression.banks import quantize_state
from golf_lightning.compression.quantize import (
    QuantizationConfig,
    RolePrecision,
    round_to_nearest,
    sdclip_scale,
    to_half,
    weighted_error,
)
from golf_lightning.errors import GolfError

INT6 = RolePrecision(6, 12.85)


@pytest.mark.parametrize("bits", [1, 17, 0, -3, 9])
@pytest.mark.parametrize("role", ["attention", "mlp", "embedding"])
def test_refuses_bits_that_do_not_fit_a_byte(bits, role):
    with pytest.raises(GolfError, match=f"int{bits}; choose 2 to 8 bits"):
        QuantizationConfig(**{f"{role}_bits": bits})


@pytest.mark.parametrize("k", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_a_clip_multiple_that_is_not_positive(k):
    with pytest.raises(GolfError, match="clip multiple"):
        QuantizationConfig(mlp_k=k)


@pytest.mark.parametrize(
    "field, value, sentence", [("damping", 0.0, "damping"), ("block", 0, "block"), ("method", "awq", "method")]
)
def test_refuses_other_settings_out_of_range(field, value, sentence):
    with pytest.raises(GolfError, match=sentence):
        QuantizationConfig(**{field: value})


@pytest.mark.parametrize("bits, largest", [(2, 1), (6, 31), (8, 127)])
def test_largest_code(bits, largest):
    assert RolePrecision(bits, 1.0).largest == largest


def test_scale_is_k_standard_deviations_over_the_largest_code():
    weight = torch.randn(3, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = weight.mean(-1, keepdim=True)
    std = ((weight - mean).square().sum(-1) / 63).sqrt()
    torch.testing.assert_close(
        sdclip_scale("up", weight.float(), INT6).double(), (12.85 * std / 31).half().double(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(
    "row",
    [
        torch.zeros(8),
        torch.full((8,), 0.3),
        torch.full((8,), -0.3) + 1e-4 * torch.arange(8),
        torch.full((8,), 1e-12),
        torch.full((8,), 1e-30),
    ],
    ids=["zero", "constant", "nearly constant", "below fp16", "tiny"],
)
@pytest.mark.parametrize("bits", [2, 6, 8])
def test_degenerate_rows_get_a_usable_scale_and_small_error(row, bits):
    precision = RolePrecision(bits, 12.85)
    weight = row.view(1, 1, -1)
    scale = sdclip_scale("up", weight, precision)
    back = round_to_nearest(weight, scale, precision).float() * scale.float().unsqueeze(-1)
    assert scale.isfinite().all() and (scale > 0).all()
    assert (back - weight).abs().max() <= max(row.abs().max().item() / precision.largest, 2**-24)


def test_a_row_of_one_weight_is_kept():
    scale = sdclip_scale("up", torch.full((1, 1, 1), 0.5), INT6)
    assert round_to_nearest(torch.full((1, 1, 1), 0.5), scale, INT6).item() * scale.item() == pytest.approx(
        0.5, rel=1e-3
    )


def test_weights_beyond_fp16_scales_are_refused():
    with pytest.raises(GolfError, match="weights of up are too large"):
        sdclip_scale("up", 1e9 * torch.randn(1, 4, 8), INT6)


def test_nearest_codes_clip_at_the_largest():
    codes = round_to_nearest(torch.tensor([[[-9.0, 0.24, 0.26, 9.0]]]), torch.tensor([[0.1]]).half(), INT6)
    assert codes.tolist() == [[[-31, 2, 3, 31]]]


def test_weighted_error_is_the_squared_change_of_the_outputs():
    generator = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(2, 5, 12, generator=generator), torch.randn(2, 40, 12, generator=generator)
    scale = sdclip_scale("up", weight, INT6)
    codes = round_to_nearest(weight, scale, INT6)
    back = codes.double() * scale.double().unsqueeze(-1)
    change = inputs.double() @ (weight.double() - back).transpose(1, 2)
    hessian = inputs.transpose(1, 2) @ inputs
    torch.testing.assert_close(
        weighted_error(weight, codes, scale, hessian).double(), change.square().sum((1, 2)), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("name", ["qo", "embedding", "mix", "lane_attn"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(random_state, config, name, value):
    random_state[name].view(-1)[1] = value
    with pytest.raises(GolfError, match=f"^{name} holds 1 NaN or infinite"):
        quantize_state(random_state, None, config, QuantizationConfig(method="rtn"))


def test_a_vector_beyond_fp16_is_named(random_state, config):
    random_state["q_gain"][0, 0] = 1e5
    with pytest.raises(GolfError, match="q_gain are too large for fp16"):
        quantize_state(random_state, None, config, QuantizationConfig(method="rtn"))


def test_gptq_without_hessians_is_refused(random_state, config):
    with pytest.raises(GolfError, match="needs calibration"):
        quantize_state(random_state, None, config, QuantizationConfig())


def test_every_parameter_is_quantized_or_kept_in_half(random_state, config, quantized):
    assert set(quantized.matrices) == {"qo", "kv", "up", "down", "embedding"}
    assert quantized.state_dict().keys() == random_state.keys()
    assert all(tensor.shape == random_state[name].shape for name, tensor in quantized.state_dict().items())


def test_dequantized_weights_are_close_to_the_originals(random_state, quantized):
    back = quantized.state_dict()
    for name, matrix in quantized.matrices.items():
        half_step = 0.5001 * matrix.scale.float().unsqueeze(-1)
        assert ((back[name] - random_state[name]).abs() <= half_step).all(), name
    for name, vector in quantized.vectors.items():
        torch.testing.assert_close(vector.float(), random_state[name], rtol=1.01 * 2**-7, atol=2**-24)


@pytest.mark.parametrize("bits", [1, 4, 6, 10])
def test_shortened_halves_are_the_nearest_of_their_kind(bits):
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)).half().float()
    short = to_half("mix", values, bits)
    assert ((short.float() - values).abs() <= values.abs() * 2.0 ** -(bits + 1) * 1.0001).all()
    assert not (short.view(torch.int16) & ((1 << (10 - bits)) - 1)).any()


def test_shortening_that_overflows_is_refused():
    with pytest.raises(GolfError, match="mix are too large"):
        to_half("mix", torch.tensor([65504.0]), 6)
