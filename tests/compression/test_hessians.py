from pathlib import Path

import pytest
import torch
from ranks import start_ranks
from small_gpt import CONFIG, packed_batch, small_gpt, spawned_rank

from golf_lightning.compression.hessians import HessianRecorder, collect_hessians, site_widths
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig


def test_full_size_has_45_distinct_sites():
    widths = site_widths(GPTConfig())
    assert len(widths) == 45
    assert sum(width == 2048 for width in widths.values()) == 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorder_sums_products_of_valid_rows_in_float32(dtype):
    recorder = HessianRecorder({"up.0": 6}, "cpu")
    first, second = torch.randn(9, 6).to(dtype), torch.randn(9, 6).to(dtype)
    second[7:] = float("nan")
    recorder.valid_rows = 9
    recorder("up.0", first)
    recorder.valid_rows = 7
    recorder("up.0", second)
    wanted = first.double().T @ first.double() + second[:7].double().T @ second[:7].double()
    assert recorder.hessians["up.0"].dtype == torch.float32
    torch.testing.assert_close(recorder.hessians["up.0"].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recurrent", [False, True])
def test_every_site_equals_the_float64_sum_over_its_visits(model, batches, recurrent):
    model.recurrent = recurrent
    seen: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for batch in batches:
            valid = int(batch.cu_seqlens[-1])
            model.features(
                batch.tokens,
                batch.cu_seqlens,
                recorder=lambda site, x, valid=valid: seen.setdefault(site, []).append(x[:valid].double()),
            )
    hessians = collect_hessians(model, batches, count=3).hessians
    assert hessians.keys() == seen.keys()
    for site, hessian in hessians.items():
        torch.testing.assert_close(
            hessian.double(),
            sum(x.T @ x for x in seen[site]),
            rtol=1e-5,
            atol=1e-4,
            msg=lambda m, site=site: f"{site}: {m}",
        )
    assert len(seen["up.1"]) == 3 * (CONFIG.loop_passes if recurrent else 1)


def test_padding_does_not_count(model):
    plain, padded = packed_batch(0, padding=0), packed_batch(0, padding=40)
    one, other = (collect_hessians(model, [batch], count=1) for batch in (plain, padded))
    assert one.tokens == other.tokens == 57
    for site, hessian in one.hessians.items():
        torch.testing.assert_close(other.hessians[site], hessian, rtol=1e-5, atol=1e-4)


def test_documents_do_not_see_each_other(model):
    whole = collect_hessians(model, [packed_batch(0, lengths=(20, 30))], count=1)
    tokens = packed_batch(0, lengths=(20, 30)).tokens
    parts = []
    for start, stop in ((0, 20), (20, 50)):
        part = packed_batch(0, lengths=(stop - start,), padding=0)
        part.tokens = tokens[start:stop].clone()
        parts.append(part)
    apart = collect_hessians(model, parts, count=2)
    for site, hessian in whole.hessians.items():
        torch.testing.assert_close(apart.hessians[site], hessian, rtol=1e-4, atol=1e-4)


def test_draws_no_more_batches_than_asked(model):
    drawn = []

    def stream():
        for seed in range(10):
            drawn.append(seed)
            yield packed_batch(seed)

    done: list[int] = []
    collect_hessians(model, stream(), count=3, progress=done.append)
    assert drawn == [0, 1, 2]
    assert done == [1, 2, 3]


def test_no_batches_is_one_clear_sentence(model):
    with pytest.raises(GolfError, match="no tokens; give it at least one"):
        collect_hessians(model, [], count=4)


def test_calibration_leaves_the_model_untouched(model, batches):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    collect_hessians(model, batches, count=3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_ranks_get_the_sum_of_both(tmp_path: Path):
    start_ranks(spawned_rank, ("sum", str(tmp_path)), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    wanted = collect_hessians(small_gpt(), [packed_batch(seed) for seed in range(4)], count=4).hessians
    for site, hessian in wanted.items():
        assert torch.equal(ranks[0][site], ranks[1][site])
        torch.testing.assert_close(ranks[0][site], hessian, rtol=1e-4, atol=1e-4)


def test_a_rank_without_batches_still_takes_part(tmp_path: Path):
    start_ranks(spawned_rank, ("uneven", str(tmp_path)), 2)
    assert [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)] == [57, 57]
