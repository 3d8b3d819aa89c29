import pytest
import torch

from golf_lightning.compression.gptq import gptq
from golf_lightning.compression.hessians import HessianRecorder
from golf_lightning.compression.quantize import RolePrecision, sdclip_scale, weighted_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_bf16_products_are_summed_as_exactly_as_float32():
    x = torch.randn(5000, 64, device="cuda").bfloat16()
    recorder = HessianRecorder({"up.0": 64}, "cuda")
    recorder.valid_rows = 4990
    recorder("up.0", x)
    wanted = x[:4990].double().T @ x[:4990].double()
    torch.testing.assert_close(recorder.hessians["up.0"].double(), wanted, rtol=1e-5, atol=1e-2)


def test_gptq_on_the_device_is_as_good_as_on_the_cpu():
    precision = RolePrecision(6, 12.85)
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(3, 40, 256, generator=generator)
    inputs = torch.randn(3, 600, 256, generator=generator) @ torch.randn(3, 256, 256, generator=generator)
    hessian = inputs.transpose(1, 2) @ inputs
    scale = sdclip_scale("up", weight, precision)
    on_cpu = gptq("up", weight, hessian, scale, precision=precision)
    on_cuda = gptq("up", weight.cuda(), hessian.cuda(), scale.cuda(), precision=precision)
    errors = [weighted_error(weight, result.codes.cpu(), scale, hessian) for result in (on_cpu, on_cuda)]
    torch.testing.assert_close(errors[1], errors[0], rtol=1e-3, atol=0)
