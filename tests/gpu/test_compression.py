import pytest
import torch
from plain_gptq import plain_gptq

from golf_lightning.compression.gptq import gptq
from golf_lightning.compression.hessians import HessianRecorder
from golf_lightning.compression.quantize import RolePrecision, sdclip_scale, weighted_error
from golf_lightning.compression.search import search_levels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_bf16_products_are_summed_as_exactly_as_float32():
    x = torch.randn(5000, 64, device="cuda").bfloat16()
    recorder = HessianRecorder({"up.0": 64}, "cuda")
    recorder.valid_rows = 4990
    recorder("up.0", x)
    wanted = x[:4990].double().T @ x[:4990].double()
    torch.testing.assert_close(recorder.hessians["up.0"].double(), wanted, rtol=1e-5, atol=1e-2)


def test_the_trellis_search_finds_the_same_levels_as_on_the_cpu():
    target = 6 * torch.randn(70, 96, generator=torch.Generator().manual_seed(2))
    for largest in (127, 31, 7):
        assert torch.equal(search_levels(target.cuda(), largest).cpu(), search_levels(target, largest))


@pytest.mark.parametrize("trellis", [False, True])
def test_gptq_on_the_device_is_as_good_as_on_the_cpu(trellis):
    precision = RolePrecision(6, 12.85)
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(3, 40, 256, generator=generator)
    inputs = torch.randn(3, 600, 256, generator=generator) @ torch.randn(3, 256, 256, generator=generator)
    hessian = inputs.transpose(1, 2) @ inputs
    scale = sdclip_scale("up", weight, precision)
    on_cpu = gptq("up", weight, hessian, scale, precision=precision, trellis=trellis)
    on_cuda = gptq("up", weight.cuda(), hessian.cuda(), scale.cuda(), precision=precision, trellis=trellis)
    errors = [weighted_error(weight, result.codes.cpu(), scale, hessian) for result in (on_cpu, on_cuda)]
    torch.testing.assert_close(errors[1], errors[0], rtol=1e-2 if trellis else 1e-3, atol=0)


@pytest.mark.parametrize("rows, columns", [(2048, 512), (512, 2048)])
def test_errors_at_full_size_are_those_of_the_float64_reference(rows, columns):
    precision = RolePrecision(6, 12.85)
    generator = torch.Generator("cuda").manual_seed(0)
    weight = 0.05 * torch.randn(3, rows, columns, generator=generator, device="cuda")
    latent = torch.randn(3, 4 * columns, columns // 2, generator=generator, device="cuda")
    inputs = latent @ torch.randn(3, columns // 2, columns, generator=generator, device="cuda")
    inputs += torch.randn(inputs.shape, generator=generator, device="cuda")
    hessian = inputs.transpose(1, 2) @ inputs
    scale = sdclip_scale("up", weight, precision)
    codes = gptq("up", weight, hessian, scale, precision=precision).codes
    wanted = plain_gptq(weight, hessian, scale, precision.largest, 0.01)
    error, best = (
        weighted_error(weight.double(), c.double(), scale.double(), hessian.double()) for c in (codes, wanted)
    )
    assert (error <= 1.005 * best).all(), (error / best).tolist()
    assert error.sum() <= 1.001 * best.sum()


def test_wide_hessians_are_summed_in_blocks():
    x = torch.randn(3000, 1300, device="cuda").bfloat16()
    recorder = HessianRecorder({"down.0": 1300}, "cuda")
    recorder.valid_rows = 3000
    recorder("down.0", x)
    wanted = x.double().T @ x.double()
    torch.testing.assert_close(recorder.finish()["down.0"].double(), wanted, rtol=1e-4, atol=5e-2)
