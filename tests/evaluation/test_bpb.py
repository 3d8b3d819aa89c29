"""Bits per byte against sums written out by hand."""

import math

import numpy as np
import pytest
import torch

from golf_lightning.data.batch import IGNORED
from golf_lightning.data.byte_table import ByteTable
from golf_lightning.evaluation.bpb import BitsPerByte, Score

# piece:   BOS "▁ab" "c" "▁" byte
TABLE = ByteTable(
    bytes_of=np.array([0, 2, 1, 0, 1], dtype=np.int16),
    leading_space=np.array([False, True, False, True, False]),
    control=np.array([True, False, False, False, False]),
)
PREVIOUS = torch.tensor([0, 1, 2, 1, 3, 0])
TARGETS = torch.tensor([1, 2, 1, 3, 0, IGNORED])
BYTES = 2 + 1 + 3 + 1 + 0  # the first space follows BOS and is not in the text


def test_bytes_and_nats_are_summed_exactly() -> None:
    metric = BitsPerByte(TABLE)
    nll = torch.tensor([1.0, 2.0, 0.5, 0.25, 3.0, 99.0])
    metric.update(nll, PREVIOUS, TARGETS)
    assert metric.score() == Score(6.75, 5, BYTES)
    assert metric.compute().item() == pytest.approx(6.75 / math.log(2) / BYTES, rel=1e-15)


def test_sums_do_not_depend_on_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    previous, targets = torch.randint(0, 5, (2, 10_000), generator=generator)
    nll = torch.rand(10_000, generator=generator) * 10
    scores = []
    for size in (10_000, 7, 1234):
        metric = BitsPerByte(TABLE)
        for start in range(0, 10_000, size):
            part = slice(start, start + size)
            metric.update(nll[part], previous[part], targets[part])
        scores.append(metric.score())
    assert len({(s.targets, s.table_bytes) for s in scores}) == 1
    assert scores[1].nats == pytest.approx(scores[0].nats, rel=1e-14)
    assert scores[0].table_bytes == int(TABLE.count(previous.numpy(), targets.numpy()).sum())


def test_a_change_of_precision_leaves_the_sums_in_float64() -> None:
    metric = BitsPerByte(TABLE).to(torch.bfloat16)
    assert metric.nats.dtype == torch.float64
    assert metric.bytes_of.dtype == torch.int32


def test_a_partial_score_says_so_and_claims_no_text_bytes() -> None:
    score = Score(6.75, 5, 7)
    whole = score.to_dict(split_targets=5, split_text_bytes=9)
    assert not whole["partial"]
    assert whole["bpb_text"] == pytest.approx(6.75 / math.log(2) / 9)
    part = score.to_dict(split_targets=6, split_text_bytes=9)
    assert part["partial"] and "bpb_text" not in part
