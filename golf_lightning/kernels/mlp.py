"""Facade of the feed-forward product: ``leaky_relu(x up^T, 0.5)^2 down^T``.

The fused path applies the activation in the epilogue of the first product, which writes the hidden units and the
activation's derivative, and multiplies by that derivative in the epilogue of the product that carries the gradient
back through ``down``: no pass over ``[T, M]`` is left outside the products. Fusing this activation into its products
follows the records of parameter golf and of the NanoGPT speedrun.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.errors import GolfError
from golf_lightning.kernels.backend import KernelBackend

# T tokens, D width, M hidden units

NEGATIVE_SLOPE = 0.5


def leaky_relu_squared(x: Tensor) -> Tensor:
    """The activation of the record's MLP: LeakyReLU with slope 0.5, then squared."""
    y = F.leaky_relu(x, NEGATIVE_SLOPE)
    return y * y


def mlp(
    x_TD: Tensor,
    up_MD: Tensor,
    down_DM: Tensor,
    *,
    observe: Callable[[Tensor], None] | None = None,
    backend: KernelBackend = "reference",
    cute: bool = False,
) -> Tensor:
    """``[T, D]`` in, ``[T, D]`` out.

    Args:
        x_TD: normalized input.
        up_MD: expanding matrix.
        down_DM: contracting matrix.
        observe: called with the hidden activations ``[T, M]`` that enter ``down``, without a gradient; calibration
            uses it.
        backend: ``reference`` or ``triton``.
        cute: take the fused products of quack-kernels, not Triton's; see
            :func:`~golf_lightning.kernels.backend.chooses_cute`.
    """
    if backend == "triton" and observe is None:
        return _FusedMLP.apply(x_TD, up_MD, down_DM, cute)
    if backend == "triton" and not torch.is_grad_enabled():
        hidden_TM, _ = torch.ops.golf.mlp_hidden(x_TD, up_MD, cute)
    else:
        hidden_TM = leaky_relu_squared(F.linear(x_TD, up_MD))
    if observe is not None:
        observe(hidden_TM)
    return product(hidden_TM, down_DM, backend=backend)


@torch.library.custom_op("golf::mlp_hidden", mutates_args=())
def hidden_and_slope(x_TD: Tensor, up_MD: Tensor, cute: bool = False) -> tuple[Tensor, Tensor]:
    """Hidden units ``[T, M]`` and the derivative of the activation there, ``[T, M]``; ``cute`` as in :func:`mlp`.

    Raises:
        GolfError: on a GPU, a row is not a multiple of 16 bytes.
    """
    z_TM = F.linear(x_TD, up_MD)
    y_TM = F.leaky_relu(z_TM, NEGATIVE_SLOPE)
    return y_TM * y_TM, 2 * y_TM * torch.where(z_TM > 0, 1.0, NEGATIVE_SLOPE).to(z_TM.dtype)


@hidden_and_slope.register_fake
def _hidden_shapes(x: Tensor, up: Tensor, cute: bool = False) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], up.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


@hidden_and_slope.register_kernel("cuda")
def _hidden_on_gpu(x: Tensor, up: Tensor, cute: bool = False) -> tuple[Tensor, Tensor]:
    from golf_lightning.kernels.cute_mlp import cute_hidden
    from golf_lightning.kernels.triton_mlp import launch_hidden

    _check_rows(x, up.shape[0])
    given = x.contiguous(), up.contiguous()
    return cute_hidden(*given) if cute else launch_hidden(*given, NEGATIVE_SLOPE)


@torch.library.custom_op("golf::mlp_hidden_backward", mutates_args=())
def sloped_product(dout_TD: Tensor, down_DM: Tensor, slope_TM: Tensor, cute: bool = False) -> Tensor:
    """Gradient before the activation: ``(dout down) * slope``, ``[T, M]``; ``cute`` as in :func:`mlp`.

    Raises:
        GolfError: on a GPU, a row is not a multiple of 16 bytes.
    """
    return (dout_TD @ down_DM) * slope_TM


@sloped_product.register_fake
def _product_shapes(dout: Tensor, down: Tensor, slope: Tensor, cute: bool = False) -> Tensor:
    return slope.new_empty(slope.shape)


@sloped_product.register_kernel("cuda")
def _product_on_gpu(dout: Tensor, down: Tensor, slope: Tensor, cute: bool = False) -> Tensor:
    from golf_lightning.kernels.cute_mlp import cute_product
    from golf_lightning.kernels.triton_mlp import launch_product

    _check_rows(dout, down.shape[1])
    given = dout.contiguous(), down.contiguous(), slope.contiguous()
    return cute_product(*given) if cute else launch_product(*given)


def _check_rows(x: Tensor, units: int) -> None:
    width, step = x.shape[1], 16 // x.element_size()
    if width % step or units % step:
        raise GolfError(
            f"The fused MLP needs width and mlp_width in multiples of {step}, not {width} and {units}; "
            "choose --model.kernels reference."
        )


@torch.library.custom_op("golf::product", mutates_args=())
def product_op(x_TC: Tensor, weight_OC: Tensor) -> Tensor:
    """``x weight^T``."""
    return F.linear(x_TC, weight_OC)


@product_op.register_fake
def _plain_product_shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def product(x_TC: Tensor, weight_OC: Tensor, *, backend: KernelBackend = "reference") -> Tensor:
    """``x weight^T``, kept apart from what is added to it.

    Inductor turns a product and a residual into ``addmm``, which first copies the residual into the result: two more
    passes over it than the addition costs where the next norm reads both.
    """
    return _Product.apply(x_TC, weight_OC) if backend == "triton" else F.linear(x_TC, weight_OC)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TC: Tensor, weight_OC: Tensor) -> Tensor:
        ctx.save_for_backward(x_TC, weight_OC)
        out: Tensor = torch.ops.golf.product(x_TC, weight_OC)
        return out

    @staticmethod
    def backward(ctx: Any, dout_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TC, weight_OC = ctx.saved_tensors
        dx_TC = dout_TO @ weight_OC if ctx.needs_input_grad[0] else None
        dweight_OC = dout_TO.T @ x_TC if ctx.needs_input_grad[1] else None
        return dx_TC, dweight_OC


class _FusedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, up_MD: Tensor, down_DM: Tensor, cute: bool) -> Tensor:
        hidden_TM, slope_TM = torch.ops.golf.mlp_hidden(x_TD, up_MD, cute)
        ctx.cute = cute
        ctx.save_for_backward(x_TD, up_MD, down_DM, hidden_TM, slope_TM)
        out_TD: Tensor = torch.ops.golf.product(hidden_TM, down_DM)
        return out_TD

    @staticmethod
    def backward(ctx: Any, dout_TD: Tensor) -> tuple[Tensor | None, ...]:
        return *mlp_gradients(dout_TD, ctx.saved_tensors, ctx.needs_input_grad, ctx.cute), None


def mlp_gradients(
    dout_TD: Tensor, saved: Sequence[Tensor], wanted: Sequence[bool], cute: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of the MLP's input and matrices as far as ``wanted``, from these and what the fused path kept."""
    x_TD, up_MD, down_DM, hidden_TM, slope_TM = saved
    dz_TM = torch.ops.golf.mlp_hidden_backward(dout_TD, down_DM, slope_TM, cute)
    dx_TD = dz_TM @ up_MD if wanted[0] else None
    dup_MD = dz_TM.T @ x_TD if wanted[1] else None
    ddown_DM = dout_TD.T @ hidden_TM if wanted[2] else None
    return dx_TD, dup_MD, ddown_DM
