"""The optimizer in one process against references that share no code with it."""

import copy
import math

import numpy as np
import pytest
import torch
from ranks import EXACT, SHAPES, gradients, parameters, set_gradients
from torch import nn

from golf_lightning.errors import GolfError
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.muon import MuonAdamW

BANKS = ("qo", "kv", "up", "down")
POLYNOMIALS = {
    "quintic": [(3.4445, -4.7750, 2.0315)] * 5,
    "polar_express": [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ],
}


def reference_orthogonal(matrix: np.ndarray, polynomials: list[tuple[float, float, float]]) -> np.ndarray:
    """Through the singular values themselves, one matrix at a time, in float64."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / (np.sqrt((matrix**2).sum()) + 1e-7)
    for a, b, c in polynomials:
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


def reference_muon(
    start: dict[str, np.ndarray], steps: list[dict[str, np.ndarray]], config: OptimizerConfig
) -> dict[str, np.ndarray]:
    weights = {name: start[name].copy() for name in BANKS}
    buffers = {name: np.zeros_like(start[name]) for name in BANKS}
    for values in steps:
        norm = math.sqrt(sum((value**2).sum() for value in values.values()))
        factor = min(1.0, config.clip_norm / (norm + 1e-6)) if config.clip_norm else 1.0
        for name in BANKS:
            gradient = values[name] * factor
            buffers[name] = config.momentum * buffers[name] + gradient
            ahead = gradient + config.momentum * buffers[name]
            for i, matrix in enumerate(ahead):
                matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
                update = reference_orthogonal(matrix, POLYNOMIALS[config.coefficients])
                rows, columns = matrix.shape
                decayed = (1 - config.muon_lr * config.muon_wd) * weights[name][i]
                weights[name][i] = decayed - config.muon_lr * math.sqrt(max(1, rows / columns)) * update
    return weights


def train(optimizer: MuonAdamW, named: dict[str, nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        set_gradients(named, gradients(step, rank=0))
        optimizer.step()


@pytest.mark.parametrize("coefficients", ["quintic", "polar_express"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.3, 1e6], ids=["clip off", "clip active", "clip too wide"])
def test_banks_follow_the_float64_reference(clip_norm: float, coefficients: str) -> None:
    config = OptimizerConfig(clip_norm=clip_norm, coefficients=coefficients, newton_schulz_dtype="float64", muon_wd=0.5)
    named = parameters()
    start = {name: parameter.detach().double().numpy().copy() for name, parameter in named.items()}
    train(MuonAdamW(named.items(), config), named, 0, 4)
    steps = [{name: value.double().numpy() for name, value in gradients(step, 0).items()} for step in range(4)]
    for name, expected in reference_muon(start, steps, config).items():
        np.testing.assert_allclose(named[name].detach().numpy(), expected, rtol=0, atol=5e-6, err_msg=name)


def test_embedding_and_vectors_follow_torch() -> None:
    config = OptimizerConfig(clip_norm=0.0)
    named, twins = parameters(), parameters()
    optimizer = MuonAdamW(named.items(), config)
    others = [
        torch.optim.AdamW([twins[name]], lr=lr, weight_decay=decay, betas=(0.9, 0.95), eps=1e-8, foreach=False)
        for name, lr, decay in [("embedding", 0.03, 0.085), ("mix", 0.02, 0.02), ("lane_balance", 0.02, 0.02)]
    ]
    for step in range(5):
        set_gradients(named, gradients(step, 0))
        set_gradients(twins, gradients(step, 0))
        optimizer.step()
        for other in others:
            other.step()
    for name in ("embedding", "mix", "lane_balance"):
        torch.testing.assert_close(named[name], twins[name], rtol=1e-6, atol=1e-7)


def test_clip_reaches_adamw_as_torch_does_it() -> None:
    named, twins = parameters(), parameters()
    twin = torch.optim.AdamW([twins["mix"]], lr=0.02, weight_decay=0.02, betas=(0.9, 0.95), eps=1e-8)
    optimizer = MuonAdamW(named.items(), OptimizerConfig(clip_norm=0.3))
    for step in range(3):
        # Sizes that change from step to step, since AdamW does not see a constant factor.
        values = {name: value * 10.0 ** (-step) for name, value in gradients(step, 0).items()}
        set_gradients(named, values)
        set_gradients(twins, values)
        norm = nn.utils.clip_grad_norm_(twins.values(), 0.3)
        optimizer.step()
        twin.step()
        torch.testing.assert_close(optimizer.grad_norm, norm)
    torch.testing.assert_close(named["mix"], twins["mix"], rtol=1e-5, atol=1e-7)


def test_learning_rate_and_momentum_follow_the_schedule() -> None:
    config = OptimizerConfig(newton_schulz_dtype="float64", muon_lr=0.01, momentum=0.5, clip_norm=0.0)
    halved = OptimizerConfig(newton_schulz_dtype="float64", muon_lr=0.02, momentum=0.9, clip_norm=0.0)
    named, twins = parameters(), parameters()
    train(MuonAdamW(named.items(), config), named, 0, 2)
    optimizer = MuonAdamW(twins.items(), halved)
    optimizer.set_schedule(0.5, momentum=0.5)
    train(optimizer, twins, 0, 2)
    assert all(torch.equal(named[name], twins[name]) for name in BANKS)


def test_step_returns_the_loss_and_frees_gradients() -> None:
    named = parameters()
    optimizer = MuonAdamW(named.items(), OptimizerConfig())

    def closure() -> torch.Tensor:
        loss = sum((parameter.square().sum() for parameter in named.values()), torch.zeros(()))
        loss.backward()
        return loss.detach()

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    assert all(parameter.grad is None for parameter in named.values())


def test_missing_gradient_counts_as_zero() -> None:
    named, twins = parameters(), parameters()
    set_gradients(named, gradients(0, 0))
    set_gradients(twins, gradients(0, 0))
    for name in ("kv", "mix"):
        named[name].grad = None
        twins[name].grad = torch.zeros(SHAPES[name])
    MuonAdamW(named.items(), EXACT).step()
    MuonAdamW(twins.items(), EXACT).step()
    assert all(torch.equal(named[name], twins[name]) for name in SHAPES)


def test_resume_is_bit_identical() -> None:
    named = parameters()
    optimizer = MuonAdamW(named.items(), OptimizerConfig())
    train(optimizer, named, 0, 3)
    state = copy.deepcopy(optimizer.state_dict())
    twins = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in named.items()}
    resumed = MuonAdamW(twins.items(), OptimizerConfig())
    resumed.load_state_dict(state)
    train(optimizer, named, 3, 6)
    train(resumed, twins, 3, 6)
    assert all(torch.equal(named[name], twins[name]) for name in SHAPES)


def test_loaded_state_does_not_share_memory() -> None:
    named, twins = parameters(), parameters()
    optimizer = MuonAdamW(named.items(), OptimizerConfig())
    train(optimizer, named, 0, 1)
    state = optimizer.state_dict()
    before = copy.deepcopy(state["state"])
    resumed = MuonAdamW(twins.items(), OptimizerConfig())
    resumed.load_state_dict(state)
    train(resumed, twins, 1, 2)
    torch.testing.assert_close(state["state"], before, rtol=0, atol=0)


def test_configured_rates_win_over_saved_ones() -> None:
    named = parameters()
    state = MuonAdamW(named.items(), OptimizerConfig(muon_lr=0.5)).state_dict()
    optimizer = MuonAdamW(named.items(), OptimizerConfig(muon_lr=0.25))
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("change", ["missing", "reshaped"])
def test_state_of_another_model_is_refused(change: str) -> None:
    named, others = parameters(), parameters()
    optimizer = MuonAdamW(named.items(), OptimizerConfig())
    train(optimizer, named, 0, 1)
    if change == "missing":
        del others["mix"]
    else:
        others["kv"] = nn.Parameter(torch.zeros(4, 6, 12))
    with pytest.raises(GolfError, match="mix" if change == "missing" else "kv"):
        MuonAdamW(others.items(), OptimizerConfig()).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("before", [0, 2], ids=["fresh", "after two steps"])
def test_snapshot_and_restore_leave_no_trace(before: int) -> None:
    named = parameters()
    optimizer = MuonAdamW(named.items(), OptimizerConfig())
    train(optimizer, named, 0, before)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(named)
    snapshot = optimizer.snapshot()
    optimizer.exchange.send(9.0, 15)
    optimizer.set_schedule(0.1, 0.1)
    train(optimizer, named, 7, 10)
    optimizer.restore(snapshot)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    assert optimizer.exchange.agreed() == (0.0, 0)
    for name in SHAPES:
        named[name].data.copy_(weights[name])
    twin = MuonAdamW(weights.items(), OptimizerConfig())
    twin.load_state_dict(state)
    train(optimizer, named, before, before + 2)
    train(twin, weights, before, before + 2)
    assert all(torch.equal(named[name], weights[name]) for name in SHAPES)
