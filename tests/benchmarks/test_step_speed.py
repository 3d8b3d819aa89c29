"""The benchmark itself: its stream has the mix of lengths it claims, and a tiny run measures what it says."""

import pytest
import step_speed
import torch

from golf_lightning.model.config import GPTConfig


def test_stream_has_the_claimed_documents_and_one_fixed_form() -> None:
    batches = step_speed.make_stream(GPTConfig(), 98_304, 8)
    documents = [int((batch.cu_seqlens.diff() > 0).sum()) for batch in batches]
    assert 120 < sum(documents) / len(documents) < 180
    assert len({batch.cu_seqlens.shape for batch in batches}) == 1
    assert all(batch.cu_seqlens.diff().max() <= 2048 and batch.cu_seqlens[-1] == 98_304 for batch in batches)


def test_model_flops_are_six_per_weight_used() -> None:
    config = GPTConfig()
    assert step_speed.model_flops(config, config.layers) == pytest.approx(215e6, rel=0.01)
    assert step_speed.model_flops(config, 17) == pytest.approx(319e6, rel=0.01)


def test_a_tiny_run_trains_and_accounts_for_its_time() -> None:
    config = GPTConfig(
        vocab_size=32, layers=4, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=16, rope_dims=4, max_seqlen=64,
        loop_first=1, loop_last=1, lanes="none",
    )  # fmt: skip
    torch.manual_seed(0)
    step = step_speed.Step(step_speed.GPT(config), step_speed.make_stream(config, 128, 2), accumulate=2)
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    phase = step_speed.measure(step, recurrent=True, steps=2, device=torch.device("cpu"))
    parts = 2 * sum(phase["ms_per_micro_batch"].values()) + phase["ms_optimizer"]
    assert 0 < parts <= phase["ms_per_step"] * 1.001
    assert phase["tokens_per_s"] == pytest.approx(256 / phase["ms_per_step"] * 1e3)
    assert any(not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))
