"""Where bits and seconds go, and the picture of it."""

import numpy as np
import pytest
import torch
from ttt_cases import score, small_config, small_gpt, small_split, two_bytes

from golf_lightning.evaluation.breakdown import EDGES, Breakdown
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.shapes import window_plan
from golf_lightning.files import sha256_of
from golf_lightning.reporting.ttt_picture import draw_ttt

LENGTHS = (40, 3, 70)


def broken_down(**fields):
    tokens, config = small_split(LENGTHS), small_config(**fields)
    stream, scores = DocumentStream(tokens), score(small_gpt(), tokens, config)
    target_bytes = two_bytes(tokens[:-1], tokens[1:])
    return stream, scores, target_bytes, Breakdown.of(stream, scores, window_plan(config), target_bytes)


def test_sums_by_position_are_those_of_each_documents_targets():
    stream, scores, target_bytes, found = broken_down()
    nats, size = np.zeros(len(EDGES)), np.zeros(len(EDGES))
    for start, count in zip(stream.starts, stream.targets, strict=True):
        for position in range(count):
            place = sum(edge <= position for edge in EDGES) - 1
            nats[place] += scores.target_nats[start + position].item()
            size[place] += target_bytes[start + position]
    np.testing.assert_allclose(found.position_nats, nats)
    np.testing.assert_array_equal(found.position_bytes, size)


def test_sums_by_length_are_those_of_the_documents():
    _, scores, _, found = broken_down()
    expected = np.zeros(len(EDGES))
    for length, nats in zip(LENGTHS, scores.nats.tolist(), strict=True):
        expected[sum(edge <= length for edge in EDGES) - 1] += nats
    np.testing.assert_allclose(found.length_nats, expected)
    assert found.length_targets.sum() == sum(LENGTHS)
    assert found.length_bytes.sum() == scores.total_bytes


def test_seconds_are_shared_out_by_rows():
    _, scores, _, found = broken_down()
    plan = window_plan(small_config())
    work = plan.work(np.array(LENGTHS))
    assert found.length_seconds.sum() == pytest.approx(scores.seconds)
    assert found.length_seconds[0] == pytest.approx(scores.seconds * work[1] / work.sum())


def test_targets_without_a_kept_score_count_for_no_position():
    stream, scores, target_bytes, whole = broken_down()
    scores.target_nats[:5] = torch.nan
    plan = window_plan(small_config())
    part = Breakdown.of(stream, scores, plan, target_bytes)
    assert whole.position_bytes.sum() - part.position_bytes.sum() == target_bytes[:5].sum()


def test_parts_of_ranks_add_up():
    tokens, config = small_split(LENGTHS), small_config()
    stream, target_bytes = DocumentStream(tokens), two_bytes(tokens[:-1], tokens[1:])
    plan = window_plan(config)
    parts = [
        Breakdown.of(stream, score(small_gpt(), tokens, config, documents=documents), plan, target_bytes)
        for documents in ([0, 1], [2])
    ]
    total = Breakdown.unstacked(sum(part.stacked() for part in parts))
    whole = broken_down()[-1]
    for name in ("position_nats", "position_bytes", "length_nats", "length_bytes", "length_targets"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-9)


@pytest.mark.parametrize("baseline", [True, False])
def test_the_picture_shows_the_figures(baseline, tmp_path):
    plain, adapted = broken_down(lr=0.0)[-1], broken_down()[-1]
    draw_ttt(tmp_path / "ttt.png", adapted, plain if baseline else None, title="a")
    draw_ttt(tmp_path / "other.png", plain, plain if baseline else None, title="a")
    assert (tmp_path / "ttt.png").read_bytes().startswith(b"\x89PNG")
    assert sha256_of(tmp_path / "ttt.png") != sha256_of(tmp_path / "other.png")
