from pathlib import Path

import pytest
import torch
from ranks import start_ranks
from small_gpt import CONFIG, packed_batch, small_gpt, spawned_rank

from golf_lightning.compression.hessians import collect_hessians
from golf_lightning.compression.sensitivity import collect_sensitivities
from golf_lightning.data.batch import IGNORED, PackedBatch
from golf_lightning.errors import GolfError
from golf_lightning.model.config import matrix_inputs


def drawn_batches(model, count):
    """Batches whose targets the model itself drew: then the Fisher information is the curvature of the loss."""
    batches = []
    for seed in range(count):
        batch = packed_batch(seed, lengths=(30, 30), padding=4)
        with torch.no_grad():
            p = model.logits(batch.tokens, batch.cu_seqlens).softmax(-1)
        drawn = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
        targets = torch.where(batch.targets == IGNORED, IGNORED, drawn)
        batches.append(PackedBatch(batch.tokens, targets, batch.cu_seqlens))
    return batches


@pytest.mark.parametrize("name", ["qo", "kv", "up", "down"])
def test_it_predicts_what_an_error_costs(name):
    """What random errors of the weights cost, against ``s/2 e H e^T``, within what the factorization is worth."""
    model = small_gpt()
    batches = drawn_batches(model, 60)
    calibration = collect_hessians(model, batches, count=60)
    sensitivity_NR = collect_sensitivities(model, batches, calibration, count=60)[name]
    sites = matrix_inputs(CONFIG)[name]
    weight = getattr(model, name)
    generator = torch.Generator().manual_seed(1)
    cost = predicted = 0.0
    with torch.no_grad():
        before = [model.logits(b.tokens, b.cu_seqlens)[:60].log_softmax(-1) for b in batches[:20]]
        clean = weight.clone()
        for _ in range(4):
            error = 0.01 * torch.randn(weight.shape, generator=generator)
            weight.copy_(clean + error)
            for b, old in zip(batches, before, strict=False):
                new = model.logits(b.tokens, b.cu_seqlens)[:60].log_softmax(-1)
                cost += float((old.exp() * (old - new)).sum()) / (60 * len(before) * 4)
            for i, site in enumerate(sites):
                hessian = calibration.hessians[site] / calibration.tokens
                rows = (error[i] @ hessian * error[i]).sum(1)
                predicted += float((sensitivity_NR[i] * rows).sum()) / 2 / 4
    assert 0.6 < predicted / cost < 1.6


def test_one_batch_says_nothing(model, batches):
    calibration = collect_hessians(model, batches, count=3)
    with pytest.raises(GolfError, match="at least two batches"):
        collect_sensitivities(model, batches[:1], calibration, count=8)


def test_the_gradient_that_all_batches_share_is_no_curvature(model, batches):
    calibration = collect_hessians(model, batches, count=3)
    found = collect_sensitivities(model, [batches[0]] * 3, calibration, count=3)
    other = collect_sensitivities(model, batches, calibration, count=3)
    for name in found:
        assert found[name].max() < 1e-4 * other[name].mean()


def test_it_works_where_gradients_are_off(model, batches):
    calibration = collect_hessians(model, batches, count=3)
    wanted = collect_sensitivities(model, batches, calibration, count=3)
    with torch.inference_mode():
        batches = [packed_batch(seed) for seed in range(3)]
        calibration = collect_hessians(model, batches, count=3)
        found = collect_sensitivities(model, batches, calibration, count=3)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_ranks_find_what_one_finds(tmp_path: Path):
    start_ranks(spawned_rank, ("sensitivities", str(tmp_path)), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model = small_gpt()
    batches = [packed_batch(seed) for seed in range(4)]
    wanted = collect_sensitivities(model, batches, collect_hessians(model, batches, count=4), count=4)
    for name in wanted:
        torch.testing.assert_close(ranks[0][name], wanted[name], rtol=1e-3, atol=1e-9)
        assert torch.equal(ranks[0][name], ranks[1][name])
