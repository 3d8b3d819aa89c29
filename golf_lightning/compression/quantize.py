"""From float32 weights to integer codes with one fp16 scale per row, and back.

A weight is ``code * scale`` with codes in ``-R..R``, ``R = 2**(bits - 1) - 1``. The scale follows the row's spread, not
its largest value (SDClip, parameter-golf PR #1394): ``fp16(k * std(row) / R)``. So ``k`` sets the entropy of the codes,
and with it the bytes after entropy coding, while ``bits`` only bounds them.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from golf_lightning.errors import GolfError

# N matrices of a bank, R rows (outputs), C columns (inputs)

Role = Literal["attention", "mlp", "embedding"]
ROLES: tuple[Role, ...] = get_args(Role)
Method = Literal["gptq", "rtn"]

ROLE_OF: dict[str, Role] = {"qo": "attention", "kv": "attention", "up": "mlp", "down": "mlp", "embedding": "embedding"}
"""The role of every quantized parameter; all other parameters are stored in fp16."""

MIN_BITS, MAX_BITS = 2, 8
HALF_BITS = 10
SMALLEST_SCALE = 2.0**-24
"""The smallest positive fp16 number. A smaller scale would round to 0 and lose its row."""


@dataclass(frozen=True, slots=True)
class RolePrecision:
    """Width of the codes of one role, and the clip point in standard deviations of a row.

    Raises:
        GolfError: bits outside 2..8 (one bit has no zero, more than eight do not fit a byte), or k not positive.
    """

    bits: int
    k: float

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise GolfError(f"Cannot quantize to int{self.bits}; choose {MIN_BITS} to {MAX_BITS} bits.")
        if not 0 < self.k < math.inf:
            raise GolfError(f"The clip multiple k is {self.k}; choose a positive number such as 12.85.")

    @property
    def largest(self) -> int:
        """R, the largest code: 31 for int6, 127 for int8."""
        return 2 ** (self.bits - 1) - 1


@dataclass(kw_only=True)
class QuantizationConfig:
    """How the weights become integers. Defaults are those of record PR #1536.

    Args:
        method: ``gptq`` (error-correcting, needs calibration) or ``rtn`` (round to nearest, the baseline).
        attention_bits: bits of a code in the attention banks (qo and kv), 2 to 8.
        attention_k: clip point of the attention banks, in standard deviations of a row; smaller is finer and larger in
            bytes.
        mlp_bits: bits of a code in the MLP banks (up and down), 2 to 8.
        mlp_k: clip point of the MLP banks, in standard deviations of a row.
        embedding_bits: bits of a code in the tied embedding, 2 to 8.
        embedding_k: clip point of the embedding, in standard deviations of a row.
        damping: added to the diagonal of every Hessian before GPTQ inverts it, as a fraction of the mean diagonal.
        block: columns that GPTQ treats together before it corrects the columns after them.
        vector_bits: bits of the significand that everything which is not a matrix keeps of float16's 10.
        trellis: let GPTQ choose among the levels of a trellis, the best path down every column, instead of rounding;
            needs at least 4 bits and the coder rans.
    """

    method: Method = "gptq"
    attention_bits: int = 6
    attention_k: float = 12.85
    mlp_bits: int = 6
    mlp_k: float = 12.85
    embedding_bits: int = 8
    embedding_k: float = 20.0
    damping: float = 0.01
    block: int = 128
    vector_bits: int = 6
    trellis: bool = True

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise GolfError(f"The quantization method is {self.method!r}; choose gptq or rtn.")
        for role in ROLES:
            self.precision(role)
        if not 0 < self.damping < math.inf:
            raise GolfError(f"damping is {self.damping}; choose a positive fraction such as 0.01.")
        if self.block < 1:
            raise GolfError(f"block is {self.block}; choose at least 1 column, usually 128.")
        if not 1 <= self.vector_bits <= HALF_BITS:
            raise GolfError(f"vector_bits is {self.vector_bits}; choose 1 to {HALF_BITS}.")

    def precision(self, role: Role) -> RolePrecision:
        """Bits and clip multiple of a role."""
        return RolePrecision(getattr(self, f"{role}_bits"), getattr(self, f"{role}_k"))


@dataclass(slots=True)
class QuantizedTensor:
    """One bank, or the embedding, as codes and scales.

    Attributes:
        role: what the tensor is part of.
        bits: width of a code.
        codes: ``[N, R, C]`` or ``[R, C]`` int8 in ``-R..R`` of ``bits``.
        scale: ``[N, R]`` or ``[R]`` float16, positive and finite.
    """

    role: Role
    bits: int
    codes: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """The weights in float32. Exact: an 8-bit code times an 11-bit significand fits float32's 24 bits."""
        return self.codes.float() * self.scale.float().unsqueeze(-1)


@dataclass(slots=True)
class QuantizedState:
    """All parameters of a model as the artifact stores them.

    Attributes:
        matrices: the quantized banks and the embedding, by parameter name.
        vectors: every other parameter in float16, by parameter name.
    """

    matrices: dict[str, QuantizedTensor]
    vectors: dict[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        """Float32 tensors for ``GPT.load_state_dict``, on the device of the codes."""
        state = {name: matrix.dequantize() for name, matrix in self.matrices.items()}
        return state | {name: vector.float() for name, vector in self.vectors.items()}

    def cpu(self) -> "QuantizedState":
        """The same values in contiguous host memory."""
        matrices = {
            name: QuantizedTensor(m.role, m.bits, m.codes.cpu().contiguous(), m.scale.cpu().contiguous())
            for name, m in self.matrices.items()
        }
        return QuantizedState(matrices, {name: v.cpu().contiguous() for name, v in self.vectors.items()})


def sdclip_scale(name: str, weight_NRC: Tensor, precision: RolePrecision) -> Tensor:
    """Scale of every row, ``fp16(k * std(row) / R)``, never 0, infinite or NaN.

    A nearly constant row, whose clip point ``k * std`` lies below its mean, is scaled by its largest magnitude instead:
    clipped at a spread near zero it would vanish. A row of zeros gets the smallest scale: on the trellis not all
    of its levels can be zero.

    Args:
        name: parameter name, for the error.
        weight_NRC: ``[..., R, C]`` finite float32.
        precision: bits and k.

    Returns:
        ``[..., R]`` float16.

    Raises:
        GolfError: a row is so large that its scale does not fit fp16.
    """
    correction = min(1, weight_NRC.shape[-1] - 1)
    clip_NR = precision.k * weight_NRC.std(dim=-1, correction=correction)
    largest_NR = weight_NRC.abs().amax(dim=-1)
    clip_NR = torch.where(clip_NR < weight_NRC.mean(dim=-1).abs(), largest_NR, clip_NR)
    scale_NR = (clip_NR / precision.largest).clamp_min(SMALLEST_SCALE).half()
    if not scale_NR.isfinite().all():
        raise GolfError(f"The weights of {name} are too large for fp16 scales; training has diverged, lower its rate.")
    return scale_NR


def round_to_nearest(weight_NRC: Tensor, scale_NR: Tensor, precision: RolePrecision) -> Tensor:
    """Codes ``[..., R, C]`` int8 nearest to the weights, clipped to ``-R..R``: the baseline without calibration."""
    codes_NRC = (weight_NRC / scale_NR.float().unsqueeze(-1)).round_()
    return codes_NRC.clamp_(-precision.largest, precision.largest).to(torch.int8)


def weighted_error(weight_NRC: Tensor, codes_NRC: Tensor, scale_NR: Tensor, hessian_NCC: Tensor) -> Tensor:
    """What quantization does to the outputs on the calibration data: ``trace((W - Q) H (W - Q)^T)`` of each matrix.

    With ``H = X^T X`` this is the summed squared change of the outputs ``X W^T``, the quantity GPTQ minimizes.

    Args:
        weight_NRC: ``[N, R, C]`` float32.
        codes_NRC: ``[N, R, C]`` int8.
        scale_NR: ``[N, R]`` float16.
        hessian_NCC: ``[N, C, C]`` float32.

    Returns:
        ``[N]`` float32.
    """
    return weighted_error_of_rows(weight_NRC, codes_NRC, scale_NR, hessian_NCC).sum(dim=1)


def weighted_error_of_rows(weight_NRC: Tensor, codes_NRC: Tensor, scale_NR: Tensor, hessian_NCC: Tensor) -> Tensor:
    """:func:`weighted_error` of each row, ``[N, R]``."""
    difference_NRC = weight_NRC - codes_NRC.to(weight_NRC) * scale_NR.to(weight_NRC).unsqueeze(-1)
    return (torch.bmm(difference_NRC, hessian_NCC) * difference_NRC).sum(dim=2)


def to_half(name: str, vector: Tensor, bits: int = HALF_BITS) -> Tensor:
    """``vector`` in float16 with ``bits`` bits of significand, checked.

    Raises:
        GolfError: a value is too large for fp16.
    """
    half = vector.detach().half()
    if dropped := HALF_BITS - bits:
        # Adding half of the last kept bit may carry into the exponent, which is right.
        raw = half.view(torch.int16) + (1 << (dropped - 1))
        half = (raw & -(1 << dropped)).view(torch.float16)
    if not half.isfinite().all():
        raise GolfError(f"The values of {name} are too large for fp16; training has diverged, lower its rate.")
    return half


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse a parameter that holds NaN or infinity.

    Raises:
        GolfError: naming the tensor and how many values are affected.
    """
    bad = int(tensor.isfinite().logical_not_().sum())
    if bad:
        raise GolfError(f"{name} holds {bad} NaN or infinite values; export a checkpoint from before they appeared.")
