"""The numbers: against test-time training written out for one document at a time."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from ttt_cases import CHUNK, LENGTHS, cached_reference, reference, score, small_config, small_gpt, small_split

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.engine import Engine
from golf_lightning.evaluation.shapes import CPU_ROWS, CPU_SLOTS, bounded, pass_shapes, window_plan
from golf_lightning.evaluation.slot_state import SlotState
from golf_lightning.evaluation.slots import schedule
from golf_lightning.model.adapters import AdapterConfig
from golf_lightning.model.gpt import GPT


def worst(first, second):
    return (first - second).abs().max().item()


@pytest.mark.parametrize("recurrent", [True, False])
def test_scores_equal_one_document_at_a_time(recurrent):
    model, tokens, config = small_gpt(recurrent=recurrent), small_split(), small_config()
    assert worst(score(model, tokens, config).target_nats, reference(model, tokens, config)) < 1e-9


@pytest.mark.parametrize(
    "fields",
    [
        {"beta1": 0.9},
        # After one token alone the gradients of Q and K are rounding noise, which a small epsilon would blow up.
        {"chunk": 1, "eps": 1e-3},
        {"chunk": 2},
        {"chunk": 10},
        {"steps": 3},
        {"chunk": 3, "window": 7},
        {"window": 40},
        {"weight_decay": 5.0, "beta2": 0.9},
        {"adapters": AdapterConfig(rank=2, alpha=8.0)},
        {"adapters": AdapterConfig(rank=2, q=False, v=False)},
        {"adapters": AdapterConfig(rank=2, head=False)},
        {"adapters": AdapterConfig(rank=2, q=False, k=False, v=False, attn=False, mlp=False)},
    ],
    ids=str,
)
def test_every_option_follows_the_reference(fields):
    model, tokens, config = small_gpt(), small_split(), small_config(**fields)
    assert worst(score(model, tokens, config).target_nats, reference(model, tokens, config)) < 1e-9


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"beta1": 0.9},
        {"chunk": 1, "eps": 1e-3},
        {"chunk": 3, "window": 7},
        {"chunk": 10},
        {"window": 40},
        {"steps": 2},
        {"lr": 0.0},
        {"adapters": AdapterConfig(rank=2, q=False, v=False)},
        {"adapters": AdapterConfig(rank=2, q=False, k=False, v=False, attn=False, mlp=False)},
    ],
    ids=str,
)
def test_cached_scores_equal_lists_of_keys_and_values_one_document_at_a_time(fields):
    model, tokens, config = small_gpt(), small_split(), small_config(mode="cached", **fields)
    assert worst(score(model, tokens, config).target_nats, cached_reference(model, tokens, config)) < 1e-9


@pytest.mark.parametrize(("mode", "expected"), [("exact", reference), ("cached", cached_reference)])
def test_scores_with_fused_operations_equal_one_document_at_a_time(mode, expected, monkeypatch):
    # On a CPU the fused operations run their formulas, with the gradients that the kernels have.
    monkeypatch.setattr(GPT, "_kernels_on", lambda self, x: "triton")
    model, tokens, config = small_gpt(), small_split(), small_config(mode=mode)
    found = score(model, tokens, config).target_nats
    monkeypatch.undo()
    assert worst(found, expected(model, tokens, config)) < 1e-9


def test_without_learning_a_cache_changes_nothing_while_the_window_holds_the_document():
    model, tokens = small_gpt(), small_split()
    exact, cached = (score(model, tokens, small_config(mode=mode, lr=0.0, window=24)) for mode in ("exact", "cached"))
    assert worst(exact.target_nats, cached.target_nats) < 1e-12


@pytest.mark.parametrize("lanes", ["isolated", "none"])
def test_other_lanes_follow_the_reference(lanes):
    model, tokens, config = small_gpt(lanes=lanes), small_split(), small_config()
    assert worst(score(model, tokens, config).target_nats, reference(model, tokens, config)) < 1e-9


def test_scoring_after_the_update_would_give_other_numbers():
    model, tokens, config = small_gpt(), small_split(), small_config()
    honest, cheated = (reference(model, tokens, config, learn_first=cheat) for cheat in (False, True))
    assert cheated.mean() < honest.mean() - 1e-3
    assert worst(score(model, tokens, config).target_nats, cheated) > 1e-2


@pytest.mark.parametrize("targets", [1, CHUNK, CHUNK + 1])
def test_a_document_alone_in_the_split_is_scored(targets):
    model, tokens, config = small_gpt(), small_split([targets]), small_config()
    assert worst(score(model, tokens, config).target_nats, reference(model, tokens, config)) < 1e-9


def test_without_a_learning_rate_it_is_a_sliding_window():
    model, tokens, config = small_gpt(), small_split(), small_config(lr=0.0)
    assert worst(score(model, tokens, config).target_nats, reference(model, tokens, config)) < 1e-12


def test_untrained_adapters_leave_a_documents_first_chunk_as_it_is():
    model, tokens = small_gpt(), small_split()
    learned, plain = (score(model, tokens, small_config(lr=lr)).target_nats for lr in (0.02, 0.0))
    starts = np.cumsum([0, *LENGTHS[:-1]])
    first = np.concatenate([start + np.arange(min(CHUNK, n)) for start, n in zip(starts, LENGTHS, strict=True)])
    assert torch.equal(learned[first], plain[first])
    assert not torch.equal(learned, plain)


def test_learning_helps_on_a_document_that_repeats_itself():
    model, tokens = small_gpt(), np.array([1, *[7, 3, 12, 5] * 10], dtype=np.uint16)
    learned, plain = (score(model, tokens, small_config(lr=lr)) for lr in (0.02, 0.0))
    assert learned.mean_nats < plain.mean_nats - 0.1


@pytest.mark.parametrize("mode", ["exact", "cached"])
@pytest.mark.parametrize("fields", [{"slots": 1}, {"slots": 9}, {"rows": 10}], ids=str)
def test_scores_do_not_depend_on_the_batch(fields, mode):
    model, tokens = small_gpt(), small_split()
    expected = score(model, tokens, small_config(mode=mode))
    assert worst(score(model, tokens, small_config(mode=mode, **fields)).target_nats, expected.target_nats) < 1e-9


@pytest.mark.parametrize(("mode", "rows"), [("exact", 64), ("cached", 32)])
def test_few_documents_take_little_room(mode, rows):
    """A GPU warms up for every slot and row that there are."""
    config = small_config(mode=mode, slots=64, rows=4096, window=16, chunk=8)
    few = bounded(config, documents=4, device=torch.device("cuda"))
    assert (few.slots, few.rows) == (4, rows)
    assert bounded(config, documents=0, device=torch.device("cuda")).slots == 1


def test_room_for_many_documents_is_bounded_on_a_cpu_alone():
    config = small_config(slots=256, rows=32_768, window=2048)
    assert bounded(config, documents=1000, device=torch.device("cuda")) == config
    small = bounded(config, documents=1000, device=torch.device("cpu"))
    assert (small.slots, small.rows) == (CPU_SLOTS, CPU_ROWS)
    assert bounded(small_config(rows=20_000, window=20_000), documents=9, device=torch.device("cpu")).rows == 20_000


def test_documents_are_scored_in_no_more_room_than_they_use(monkeypatch):
    rooms = []
    monkeypatch.setattr(Engine, "warm_up", lambda self: rooms.append(self.config.slots))
    score(small_gpt(), small_split(), small_config(slots=300))
    score(small_gpt(), small_split([3] * 50), small_config(slots=300))
    assert rooms == [len(LENGTHS), CPU_SLOTS]


def test_a_gpu_that_is_too_small_is_told_in_one_sentence(monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Engine, "warm_up", full)
    with pytest.raises(GolfError, match=r"with 3 slots and .* does not fit in the GPU's memory; choose fewer"):
        score(small_gpt(), small_split(), small_config(slots=3))


@pytest.mark.parametrize("mode", ["exact", "cached"])
def test_stream_window_and_sorted_order_give_equal_sums(mode):
    model, tokens = small_gpt(), small_split()
    stream, window, by_length = (
        score(model, tokens, small_config(order=order, mode=mode)) for order in ("stream", "window", "sorted")
    )
    for other in (window, by_length):
        assert worst(other.nats, stream.nats) < 1e-9
        assert other.total_nats == pytest.approx(stream.total_nats, abs=1e-9)
        assert torch.equal(other.targets, stream.targets)
        assert torch.equal(other.bytes, stream.bytes)


@pytest.mark.parametrize("mode", ["exact", "cached"])
def test_scores_do_not_depend_on_the_order_of_documents(mode):
    model, tokens, config = small_gpt(), small_split(), small_config(mode=mode)
    order = random.Random(0).sample(range(len(LENGTHS)), len(LENGTHS))
    mixed, expected = score(model, tokens, config, documents=order), score(model, tokens, config)
    assert worst(mixed.target_nats, expected.target_nats) < 1e-9
    assert worst(mixed.nats, expected.nats) < 1e-9


def test_in_float32_the_batch_moves_scores_by_rounding_only():
    model, tokens = small_gpt(torch.float32), small_split()
    alone, together = (score(model, tokens, small_config(slots=slots, lr=1e-3)) for slots in (1, 9))
    assert worst(alone.target_nats, together.target_nats) < 1e-4
    assert abs(alone.mean_nats - together.mean_nats) < 1e-6


def test_float32_follows_float64():
    model, tokens, config = small_gpt(), small_split(), small_config(lr=1e-3)
    expected = score(model, tokens, config).target_nats
    single = small_gpt(torch.float32)
    single.load_state_dict(model.state_dict())
    assert worst(score(single, tokens, config).target_nats, expected) < 1e-4


def test_all_slots_of_a_long_split_are_used_again():
    lengths = random.Random(1).choices(range(1, 30), k=25)
    model, tokens, config = small_gpt(), small_split(lengths), small_config(slots=4)
    assert worst(score(model, tokens, config).target_nats, reference(model, tokens, config)) < 1e-9


@pytest.mark.parametrize("mode", ["exact", "cached"])
@pytest.mark.parametrize("slots", [1, 4])
def test_a_document_learns_once_a_chunk_and_never_from_its_last(mode, slots, monkeypatch):
    updates = []
    update = SlotState.update

    def counted(self, learning, grads):
        updates.extend(slot for slot in learning.slots.tolist() if slot != self.empty)
        update(self, learning, grads)

    monkeypatch.setattr(SlotState, "update", counted)
    score(small_gpt(), small_split(), small_config(slots=slots, mode=mode))
    assert len(updates) == sum(-(-n // CHUNK) - 1 for n in LENGTHS)


def test_another_seed_gives_other_scores():
    model, tokens, config = small_gpt(), small_split(), small_config()
    other = score(model, tokens, dataclasses.replace(config, seed=6))
    assert worst(other.target_nats, score(model, tokens, config).target_nats) > 1e-6


def test_bfloat16_scores_stay_close():
    model, tokens, config = small_gpt(torch.float32), small_split(), small_config(lr=1e-3)
    expected = score(model, tokens, config)
    model.compute_dtype = torch.bfloat16
    assert abs(score(model, tokens, config).mean_nats - expected.mean_nats) < 0.05


@pytest.mark.parametrize("fields", [{"mode": "exact"}, {"mode": "exact", "slots": 100}, {"mode": "cached"}], ids=str)
def test_on_a_gpu_every_pass_has_a_shape_that_was_recorded(fields):
    config = small_config(**{"slots": 300, "rows": 200, "chunk": 3, "window": 20, **fields})
    plan = window_plan(config)
    shapes = pass_shapes(config, plan)
    assert len(set(shapes)) == len(shapes)
    assert [shape.rows for shape in shapes] == sorted((shape.rows for shape in shapes), reverse=True)
    targets = np.random.default_rng(0).integers(1, 60, 500)
    limits = {"slots": config.slots, "rows": shapes[0].rows, "together": shapes[0].documents}
    for step in schedule(targets, range(500), plan, **limits):
        assert any(step.rows.sum() <= s.rows and len(step.slots) <= s.documents for s in shapes)
