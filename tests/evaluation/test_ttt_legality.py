"""No score may know what comes after it, and nothing may be left behind."""

import numpy as np
import pytest
import torch
from ttt_cases import CHUNK, LENGTHS, score, small_config, small_gpt, small_split

from golf_lightning.evaluation.documents import DocumentStream

STARTS = DocumentStream(small_split()).starts
LONG = 2
"""A document longer than the window."""


@pytest.mark.parametrize("attention", ["reference", "segments"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["exact", "cached"])
@pytest.mark.parametrize("position", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 13, LENGTHS[LONG] - 1])
def test_changing_a_token_moves_no_earlier_score(attention, dtype, mode, position):
    model, config = small_gpt(dtype, attention=attention), small_config(mode=mode)
    tokens, changed = small_split(), small_split()
    place = STARTS[LONG] + position
    changed[place] = 2 + (changed[place] - 1) % 17
    before, after = score(model, tokens, config).target_nats, score(model, changed, config).target_nats
    assert torch.equal(before[: place - 1], after[: place - 1])
    assert before[place - 1] != after[place - 1]


@pytest.mark.parametrize("mode", ["exact", "cached"])
def test_changing_a_token_moves_the_scores_of_no_other_document(mode):
    model, config = small_gpt(), small_config(mode=mode)
    tokens, changed = small_split(), small_split()
    changed[STARTS[LONG] + 3] = 2 + (changed[STARTS[LONG] + 3] - 1) % 17
    before, after = score(model, tokens, config), score(model, changed, config)
    others = np.arange(len(LENGTHS)) != LONG
    assert torch.equal(before.nats[others], after.nats[others])


@pytest.mark.parametrize("mode", ["exact", "cached"])
@pytest.mark.parametrize("cut", range(9, 17))
def test_where_a_document_ends_moves_no_earlier_score(cut, mode):
    model, config = small_gpt(), small_config(mode=mode)
    tokens = small_split([23])
    whole, short = (score(model, kept, config).target_nats for kept in (tokens, tokens[: cut + 1]))
    assert (whole[:cut] - short).abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["exact", "cached"])
def test_every_target_is_scored_once(mode):
    scores = score(small_gpt(), small_split(), small_config(mode=mode))
    assert scores.targets.tolist() == list(LENGTHS)
    assert scores.target_nats.isfinite().all()
    torch.testing.assert_close(scores.total_nats, scores.target_nats.sum().item())


@pytest.mark.parametrize("interrupt", [False, True])
def test_the_model_is_left_as_it_was(interrupt):
    model = small_gpt(torch.float32)
    model.mix.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def progress(_):
        if interrupt:
            raise KeyboardInterrupt

    try:
        score(model, small_split(), small_config(), progress=progress, interval_seconds=0.0)
        assert not interrupt
    except KeyboardInterrupt:
        assert interrupt
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["mix"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_of_a_training_step_survive():
    model = small_gpt()
    tokens = torch.arange(8)
    model(tokens, tokens, torch.tensor([0, 8]).int()).sum().backward()
    before = model.up.grad.clone()
    score(model, small_split(), small_config())
    assert torch.equal(model.up.grad, before)


@pytest.mark.parametrize("outside", [torch.inference_mode, torch.no_grad])
def test_it_learns_where_gradients_are_off(outside):
    model, tokens, config = small_gpt(), small_split(), small_config()
    with outside():
        inside = score(model, tokens, config)
    assert torch.equal(inside.target_nats, score(model, tokens, config).target_nats)


@pytest.mark.parametrize("mode", ["exact", "cached"])
def test_the_same_run_gives_the_same_bits(mode):
    first, second = (
        score(small_gpt(torch.float32), small_split(), small_config(mode=mode)).target_nats for _ in range(2)
    )
    assert torch.equal(first, second)


def test_scoring_draws_from_no_generator():
    model = small_gpt()
    state = torch.get_rng_state()
    score(model, small_split(), small_config())
    assert torch.equal(torch.get_rng_state(), state)
