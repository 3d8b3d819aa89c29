"""The whole network on the fused path: its operations' CPU implementations stand in for the GPU kernels."""

import pytest
import torch
from small import pack, random_model, small_config

from golf_lightning.data.batch import IGNORED
from golf_lightning.model import gpt
from golf_lightning.model.gpt import GPT


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "choose_kernels", lambda backend, device, dtype: backend)


def models(**changes: object) -> tuple[GPT, GPT]:
    config = small_config(**changes)
    pair = tuple(random_model(config, attention="reference", kernels=backend) for backend in ("reference", "triton"))
    for model in pair:
        model.recurrent = True
    return pair[0], pair[1]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    tokens, cu_seqlens = pack(torch.randint(0, 50, (9,)), torch.randint(0, 50, (12,)), padding=3)
    targets = torch.randint(0, 50, tokens.shape)
    targets[-3:] = IGNORED
    return tokens, targets, cu_seqlens


@pytest.mark.parametrize("changes", [{}, {"lanes": "isolated"}, {"lanes": "none"}, {"xsa": False}, {"rope_dims": 0}])
def test_fused_path_equals_the_reference_path(fused: None, changes: dict[str, object]) -> None:
    reference, model = models(**changes)
    for each in (reference, model):
        each(*batch()).sum().backward()
    torch.testing.assert_close(model(*batch()), reference(*batch()))
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("gradients", [True, False])
def test_fused_path_compiles_into_one_graph(fused: None, gradients: bool) -> None:
    reference, model = models()
    model.compile(backend="aot_eager", dynamic=False, fullgraph=True)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(model(*batch()), reference(*batch()))
