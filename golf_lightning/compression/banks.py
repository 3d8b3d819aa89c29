"""Quantize a model bank by bank, and measure what it costs."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from golf_lightning.compression.gptq import gptq
from golf_lightning.compression.quantize import (
    MAX_BITS,
    ROLE_OF,
    QuantizationConfig,
    QuantizedState,
    QuantizedTensor,
    RolePrecision,
    check_finite,
    round_to_nearest,
    sdclip_scale,
    to_half,
    weighted_error,
    weighted_error_of_rows,
)
from golf_lightning.compression.ranks import on_every_rank
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig, matrix_inputs

# N matrices of a bank, R rows (outputs), C columns (inputs)


@dataclass(slots=True)
class BankErrors:
    """What quantization did to each matrix of a bank, weighted by its Hessian; one entry per matrix.

    Attributes:
        error: ``trace((W - Q) H (W - Q)^T)``, the squared change of the outputs on the calibration data.
        nearest: the same for round to nearest on a grid of the same rate.
        energy: ``trace(W H W^T)``, the squared outputs themselves.
        damping: the damping used; above the configured one where the Hessian was nearly singular.
        nats: loss per token that the error should cost; empty where sensitivities are not known.
    """

    error: list[float]
    nearest: list[float]
    energy: list[float]
    damping: list[float]
    nats: list[float]


def quantize_bank(
    name: str,
    weight_NRC: Tensor,
    hessian_NCC: Tensor | None,
    settings: QuantizationConfig,
    scale_NR: Tensor | None = None,
    cost_NR: Tensor | None = None,
) -> tuple[QuantizedTensor, BankErrors | None]:
    """Quantize the matrices of one bank, or some of them: each depends on itself alone.

    Args:
        name: parameter name; its role decides bits and clip point.
        weight_NRC: ``[N, R, C]`` float32.
        hessian_NCC: ``[N, C, C]`` float32; ``None`` only for round to nearest, and then there are no errors.
        settings: how to quantize.
        scale_NR: ``[N, R]`` float16 of rate control; codes then take up to 8 bits. ``None``: as ``settings`` says.
        cost_NR: ``[N, R]`` loss per unit of a row's weighted error, to predict what the errors cost.

    Raises:
        GolfError: the weights or Hessians are not finite or do not fit fp16.
    """
    check_finite(name, weight_NRC)
    role = ROLE_OF[name]
    precision = settings.precision(role)
    if scale_NR is None:
        scale_NR = sdclip_scale(name, weight_NRC, precision)
    else:
        precision = RolePrecision(MAX_BITS, precision.k)
    trellis = settings.trellis and settings.method == "gptq"
    # A grid of the same rate has twice the step of the trellis.
    nearest_scale_NR = 2 * scale_NR if trellis else scale_NR
    nearest_NRC = round_to_nearest(weight_NRC, nearest_scale_NR, precision)
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
            trellis=trellis,
        )
        codes_NRC, damping = result.codes, result.damping
    quantized = QuantizedTensor(role, precision.bits, codes_NRC, scale_NR)
    if hessian_NCC is None:
        return quantized, None
    rows_NR = weighted_error_of_rows(weight_NRC, codes_NRC, scale_NR, hessian_NCC)
    errors = BankErrors(
        error=rows_NR.sum(dim=1).tolist(),
        nearest=weighted_error(weight_NRC, nearest_NRC, nearest_scale_NR, hessian_NCC).tolist(),
        energy=(torch.bmm(weight_NRC, hessian_NCC) * weight_NRC).sum(dim=(1, 2)).tolist(),
        damping=damping,
        nats=[] if cost_NR is None else (cost_NR * rows_NR).sum(dim=1).tolist(),
    )
    return quantized, errors


@torch.no_grad()
def quantize_state(
    state_dict: dict[str, Tensor],
    hessians: dict[str, Tensor] | None,
    config: GPTConfig,
    settings: QuantizationConfig,
    scales: dict[str, Tensor] | None = None,
    costs: dict[str, Tensor] | None = None,
) -> tuple[QuantizedState, dict[str, BankErrors]]:
    """Quantize a model's parameters: banks and embedding to integers, everything else to fp16.

    When ``torch.distributed`` is initialized every rank calls this with the same weights and scales; each quantizes the
    banks that :func:`share_out` gives it, and all get the same result, that of one rank with the owners' Hessians.

    Args:
        state_dict: float32 tensors of a GPT, on any one device.
        hessians: ``[C, C]`` by site, from :func:`~golf_lightning.compression.hessians.collect_hessians`; ``None`` for
            round to nearest without calibration.
        config: shape of the model.
        settings: how to quantize.
        scales: ``[N, R]`` float16 by parameter name, of rate control; ``None``: as ``settings`` says.
        costs: ``[N, R]`` by parameter name, loss per unit of a row's weighted error; see :attr:`BankErrors.nats`.

    Returns:
        The quantized state, and the errors of each bank (empty without Hessians).

    Raises:
        GolfError: a tensor holds NaN, infinity or values beyond fp16, naming it; GPTQ without Hessians.
    """
    if hessians is None and settings.method == "gptq":
        raise GolfError("GPTQ needs calibration; collect Hessians first or choose the method rtn.")
    sites = matrix_inputs(config)
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    owners = share_out({name: state_dict[name].shape[-1] for name in sites}, ranks)
    matrices: dict[str, QuantizedTensor] = {}
    vectors: dict[str, Tensor] = {}

    def quantize_share() -> dict[str, Any]:
        errors = {}
        for name, inputs in sites.items():
            weight = state_dict[name].detach().float()
            if owners[name] != rank:
                codes = torch.empty_like(weight, dtype=torch.int8)
                matrices[name] = QuantizedTensor(ROLE_OF[name], 0, codes, codes[..., 0].half())
                continue
            matrices[name], bank_errors = quantize_bank(
                name,
                weight.view(len(inputs), *weight.shape[-2:]),
                None if hessians is None else torch.stack([hessians[site] for site in inputs]),
                settings,
                None if scales is None else scales[name],
                None if costs is None else costs[name],
            )
            matrices[name].codes = matrices[name].codes.view(weight.shape)
            matrices[name].scale = matrices[name].scale.view(weight.shape[:-1])
            errors[name] = {"bits": matrices[name].bits, "errors": bank_errors and asdict(bank_errors)}
        for name, tensor in state_dict.items():
            if name not in sites:
                check_finite(name, tensor)
                vectors[name] = to_half(name, tensor, settings.vector_bits)
        return errors

    shares = on_every_rank(quantize_share)
    errors = {}
    for name, owner in owners.items():
        matrix, told = matrices[name], shares[owner][name]
        matrix.bits = told["bits"]
        if told["errors"]:
            errors[name] = BankErrors(**told["errors"])
        if ranks > 1:
            dist.broadcast(matrix.codes, src=owner)
            dist.broadcast(matrix.scale, src=owner)
    return QuantizedState(matrices, vectors), errors


def share_out(columns: dict[str, int], ranks: int) -> dict[str, int]:
    """The rank that quantizes each bank: the widest bank first, each to the rank with the fewest columns so far.

    The matrices of a bank advance through its columns together, column by column, so a part of a bank would take a GPU
    as long as the whole of it.
    """
    load = [0] * ranks
    owners = dict.fromkeys(columns, 0)
    for name in sorted(columns, key=lambda name: -columns[name]):
        owners[name] = load.index(min(load))
        load[owners[name]] += columns[name]
    return owners
