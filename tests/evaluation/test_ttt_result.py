"""What scoring says about itself: sums, parts, progress, the budget, and bad input."""

import json
import math

import numpy as np
import pytest
import torch
from ttt_cases import LENGTHS, score, small_config, small_gpt, small_split, two_bytes

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.config import TTTConfig


def test_bits_per_byte_are_nats_over_the_bytes_of_all_targets():
    tokens = small_split()
    scores = score(small_gpt(), tokens, small_config())
    total = int(two_bytes(tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)).sum())
    assert scores.total_bytes == total
    assert scores.bpb == pytest.approx(scores.target_nats.sum().item() / math.log(2) / total, rel=1e-12)


def test_bytes_belong_to_their_document():
    tokens = np.array([1, 5, 6, 1, 7, 8, 9], dtype=np.uint16)
    assert score(small_gpt(), tokens, small_config()).bytes.tolist() == [5, 7]


def test_totals_are_json():
    totals = score(small_gpt(), small_split(), small_config()).to_dict()
    assert json.loads(json.dumps(totals))["targets"] == sum(LENGTHS)
    assert totals["documents"] == len(LENGTHS)


def test_targets_without_text_have_no_bits_per_byte():
    scores = score(small_gpt(), small_split(), small_config(), token_bytes=lambda previous, targets: 0 * targets)
    assert math.isnan(scores.bpb)
    assert scores.to_dict()["bpb"] is None


@pytest.mark.parametrize("part", [{"max_documents": 3}, {"fraction": 0.3}])
def test_a_part_of_the_split_is_labelled(part):
    model, tokens = small_gpt(), small_split()
    scores, whole = score(model, tokens, small_config(**part)), score(model, tokens, small_config())
    assert scores.partial
    assert not whole.partial
    torch.testing.assert_close(scores.nats, whole.nats[:3], rtol=1e-9, atol=0)


def test_parts_add_up():
    model, tokens, config = small_gpt(), small_split(), small_config()
    parts = [score(model, tokens, config, documents=range(first, len(LENGTHS), 2)) for first in (0, 1)]
    whole = score(model, tokens, config)
    assert all(part.partial for part in parts)
    torch.testing.assert_close(parts[0].nats + parts[1].nats, whole.nats, rtol=1e-9, atol=0)
    assert torch.equal(parts[0].targets + parts[1].targets, whole.targets)
    assert torch.equal(parts[0].bytes + parts[1].bytes, whole.bytes)
    assert torch.equal(parts[0].target_nats.isnan(), parts[1].target_nats.isfinite())


def test_a_bos_that_ends_the_split_is_passed_over():
    scores = score(small_gpt(), np.array([1, 5, 6, 1], dtype=np.uint16), small_config())
    assert scores.targets.tolist() == [3, 0]


def test_progress_runs_to_the_end():
    seen = []
    scores = score(small_gpt(), small_split(), small_config(), progress=seen.append, interval_seconds=0.0)
    targets = [now.targets for now in seen]
    assert targets == sorted(targets)
    assert len(seen) > 3
    last = seen[-1]
    assert (last.targets, last.targets_total) == (sum(LENGTHS), sum(LENGTHS))
    assert (last.documents, last.documents_total) == (len(LENGTHS), len(LENGTHS))
    assert last.bpb == pytest.approx(scores.bpb, rel=1e-12)
    assert last.projected_seconds == pytest.approx(last.seconds)


def test_progress_counts_the_bytes_of_what_is_scored():
    seen = []
    score(small_gpt(), small_split([8]), small_config(), progress=seen.append, interval_seconds=0.0)
    assert [(now.targets, now.bytes) for now in seen[:2]] == [(4, 9), (8, 17)]


def test_a_budget_that_will_not_suffice_is_told_once(caplog):
    config = small_config(budget_seconds=100.0)
    score(small_gpt(), small_split(), config, elapsed_seconds=100.0, interval_seconds=0.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "over the budget of 100 s" in caplog.text


@pytest.mark.parametrize("budget", [1000.0, None])
def test_a_budget_that_suffices_is_not_mentioned(budget, caplog):
    score(small_gpt(), small_split(), small_config(budget_seconds=budget), interval_seconds=0.0)
    assert not caplog.records


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(GolfError, match="token 19 but the model has 19 pieces"):
        score(small_gpt(), np.array([1, 19], dtype=np.uint16), small_config())


def test_broken_weights_are_told():
    model = small_gpt()
    model.down.data.fill_(torch.nan)
    with pytest.raises(GolfError, match="9 documents have no finite score"):
        score(model, small_split(), small_config())


def test_a_document_given_twice_is_a_defect():
    with pytest.raises(AssertionError, match="twice"):
        score(small_gpt(), small_split(), small_config(), documents=[0, 1, 0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"weight_decay": -0.5}, "weight_decay is -0.5"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"slots": 0}, "slots is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"mode": "fast"}, "mode is 'fast'; choose exact or cached"),
        ({"order": "shuffled"}, "order is 'shuffled'; choose stream, window or sorted"),
        ({"window": 15}, "window is 15, shorter than a chunk of 16"),
        ({"rows": 2047}, "rows is 2047, too few for one window of 2048"),
        ({"seed": -1}, "seed is -1"),
        ({"max_documents": 0}, "max_documents is 0"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"budget_seconds": 0.0}, "budget_seconds is 0.0"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(GolfError, match=message):
        TTTConfig(**fields)
