"""Quantize a model bank by bank, and measure what it costs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf_lightning.compression.gptq import gptq
from golf_lightning.compression.quantize import (
    ROLE_OF,
    QuantizationConfig,
    QuantizedState,
    QuantizedTensor,
    check_finite,
    round_to_nearest,
    sdclip_scale,
    to_half,
    weighted_error,
)
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig, matrix_inputs

# N matrices of a bank, R rows (outputs), C columns (inputs)


@dataclass(slots=True)
class BankErrors:
    """What quantization did to each matrix of a bank, weighted by its Hessian; one entry per matrix.

    Attributes:
        error: ``trace((W - Q) H (W - Q)^T)``, the squared change of the outputs on the calibration data.
        nearest: the same for round to nearest with the same scales.
        energy: ``trace(W H W^T)``, the squared outputs themselves.
        damping: the damping used; above the configured one where the Hessian was nearly singular.
    """

    error: list[float]
    nearest: list[float]
    energy: list[float]
    damping: list[float]


def quantize_bank(
    name: str, weight_NRC: Tensor, hessian_NCC: Tensor | None, settings: QuantizationConfig
) -> tuple[QuantizedTensor, BankErrors | None]:
    """Quantize the matrices of one bank, or some of them: each depends on itself alone.

    Args:
        name: parameter name; its role decides bits and clip point.
        weight_NRC: ``[N, R, C]`` float32.
        hessian_NCC: ``[N, C, C]`` float32; ``None`` only for round to nearest, and then there are no errors.
        settings: how to quantize.

    Raises:
        GolfError: the weights or Hessians are not finite or do not fit fp16.
    """
    check_finite(name, weight_NRC)
    role = ROLE_OF[name]
    precision = settings.precision(role)
    scale_NR = sdclip_scale(name, weight_NRC, precision)
    nearest_NRC = round_to_nearest(weight_NRC, scale_NR, precision)
    codes_NRC, damping = nearest_NRC, [0.0] * weight_NRC.shape[0]
    if settings.method == "gptq":
        assert hessian_NCC is not None, "GPTQ needs Hessians"
        result = gptq(
            name,
            weight_NRC,
            hessian_NCC,
            scale_NR,
            precision=precision,
            damping=settings.damping,
            block=settings.block,
        )
        codes_NRC, damping = result.codes, result.damping
    quantized = QuantizedTensor(role, precision.bits, codes_NRC, scale_NR)
    if hessian_NCC is None:
        return quantized, None
    errors = BankErrors(
        error=weighted_error(weight_NRC, codes_NRC, scale_NR, hessian_NCC).tolist(),
        nearest=weighted_error(weight_NRC, nearest_NRC, scale_NR, hessian_NCC).tolist(),
        energy=(torch.bmm(weight_NRC, hessian_NCC) * weight_NRC).sum(dim=(1, 2)).tolist(),
        damping=damping,
    )
    return quantized, errors


@torch.no_grad()
def quantize_state(
    state_dict: dict[str, Tensor], hessians: dict[str, Tensor] | None, config: GPTConfig, settings: QuantizationConfig
) -> tuple[QuantizedState, dict[str, BankErrors]]:
    """Quantize a model's parameters: banks and embedding to integers, everything else to fp16.

    Args:
        state_dict: float32 tensors of a GPT, on any one device.
        hessians: ``[C, C]`` by site, from :func:`~golf_lightning.compression.hessians.collect_hessians`; ``None`` for
            round to nearest without calibration.
        config: shape of the model.
        settings: how to quantize.

    Returns:
        The quantized state, and the errors of each bank (empty without Hessians).

    Raises:
        GolfError: a tensor holds NaN, infinity or values beyond fp16, naming it; GPTQ without Hessians.
    """
    if hessians is None and settings.method == "gptq":
        raise GolfError("GPTQ needs calibration; collect Hessians first or choose the method rtn.")
    sites = matrix_inputs(config)
    matrices: dict[str, QuantizedTensor] = {}
    errors: dict[str, BankErrors] = {}
    for name, inputs in sites.items():
        weight = state_dict[name].detach().float()
        stacked_NCC = None if hessians is None else torch.stack([hessians[site] for site in inputs])
        quantized, bank_errors = quantize_bank(
            name, weight.view(len(inputs), *weight.shape[-2:]), stacked_NCC, settings
        )
        quantized.codes = quantized.codes.view(weight.shape)
        quantized.scale = quantized.scale.view(weight.shape[:-1])
        matrices[name] = quantized
        if bank_errors is not None:
            errors[name] = bank_errors
    vectors = {}
    for name, tensor in state_dict.items():
        if name not in sites:
            check_finite(name, tensor)
            vectors[name] = to_half(name, tensor)
    return QuantizedState(matrices, vectors), errors
