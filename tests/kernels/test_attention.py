"""The attention backends of a CPU against plain softmax attention in float64."""

import math

import pytest
import torch
from torch import Tensor

from golf_lightning.errors import GolfError
from golf_lightning.kernels.attention import choose_backend, varlen_attention


def plain(q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> Tensor:
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        for h in range(q.shape[1]):
            for t in range(start, stop):
                scores = k[start : t + 1, h // group] @ q[t, h] / math.sqrt(q.shape[2])
                out[t, h] = scores.softmax(0) @ v[start : t + 1, h // group]
    return out


CASES = {
    "uneven": [0, 3, 4, 11, 16, 16, 16],
    "one length": [0, 4, 8, 12, 16],
    "one document": [0, 16],
    "padding": [0, 5, 9, 9],
    "empty": [0, 0],
}


@pytest.mark.parametrize("bounds", CASES.values(), ids=CASES)
@pytest.mark.parametrize("backend", ["reference", "segments"])
def test_forward_and_gradients(backend: str, bounds: list[int]) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(16, h, 8, dtype=torch.float64, requires_grad=True) for h in (6, 2, 2))
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    out = varlen_attention(q, k, v, cu_seqlens, max_seqlen=16, backend=backend)
    expected = plain(q, k, v, bounds)
    torch.testing.assert_close(out, expected)
    if not out.requires_grad:
        return
    weight = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), (q, k, v))
    if not expected.requires_grad:
        assert not any(g.any() for g in gradients)
        return
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weight).sum(), (q, k, v)))


def test_auto_takes_the_cpu_path_without_a_gpu() -> None:
    assert choose_backend("auto", torch.device("cpu")) == "segments"


@pytest.mark.parametrize("backend", ["torch", "fa4"])
def test_gpu_backends_are_refused_on_a_cpu(backend: str) -> None:
    with pytest.raises(GolfError, match="needs a CUDA GPU"):
        choose_backend(backend, torch.device("cpu"))
