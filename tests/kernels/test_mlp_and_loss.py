"""The MLP and the loss against formulas written out in float64."""

import torch

from golf_lightning.data.batch import IGNORED
from golf_lightning.kernels.cross_entropy import softcapped_nll
from golf_lightning.kernels.mlp import mlp


def test_mlp_equals_its_formula_and_shows_its_hidden_units() -> None:
    torch.manual_seed(0)
    x, up, down = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 3), (7, 3), (3, 7)))
    seen: list[torch.Tensor] = []
    out = mlp(x, up, down, observe=seen.append)
    z = x @ up.T
    hidden = torch.maximum(z, z / 2) ** 2
    torch.testing.assert_close(seen[0], hidden)
    torch.testing.assert_close(out, hidden @ down.T)


def test_loss_equals_its_formula() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 11, dtype=torch.float64) * 40
    targets = torch.tensor([3, 0, IGNORED, 10, 7, IGNORED])
    capped = 30 * torch.tanh(logits / 30)
    expected = [0.0 if t == IGNORED else float(capped[i].logsumexp(0) - capped[i, t]) for i, t in enumerate(targets)]
    torch.testing.assert_close(softcapped_nll(logits, targets, 30.0), torch.tensor(expected, dtype=torch.float64))


def test_loss_of_half_precision_logits_is_float32() -> None:
    nll = softcapped_nll(torch.randn(4, 5, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int64), 30.0)
    assert nll.dtype == torch.float32
