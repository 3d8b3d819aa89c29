"""Scores over ranks: every target once, and the same numbers for any number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_on_ranks
from test_bpb import TABLE
from ttt_cases import LENGTHS, score, small_config, small_gpt, small_split

from golf_lightning.data.packing import PackingConfig, ValidationBatches
from golf_lightning.evaluation.bpb import BitsPerByte
from golf_lightning.evaluation.packed import score_packed


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_test_time_training_does_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    """Documents are dealt in stream order, as the stage that follows training deals them."""
    model, tokens, config = small_gpt(torch.float32), small_split(), small_config(lr=1e-3)
    alone = score(model, tokens, config)
    parts = [
        score(model, tokens, config, documents=range(rank, len(LENGTHS), world_size)) for rank in range(world_size)
    ]
    scored = torch.stack([part.target_nats.isfinite() for part in parts])
    assert torch.equal(scored.sum(0), torch.ones_like(scored[0], dtype=torch.int64))
    together = torch.stack([part.target_nats.nan_to_num(0.0) for part in parts]).sum(0)
    torch.testing.assert_close(together, alone.target_nats, rtol=0, atol=1e-4)
    targets = sum(part.total_targets for part in parts)
    assert targets == alone.total_targets == sum(LENGTHS)
    assert sum(part.total_bytes for part in parts) == alone.total_bytes
    assert sum(part.total_nats for part in parts) / targets == pytest.approx(alone.mean_nats, abs=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_packed_scores_do_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    model = small_gpt(torch.float32, vocab_size=5)
    tokens = np.random.default_rng(0).integers(1, 5, 400).astype(np.uint16)
    tokens[np.arange(0, 400, 29)] = 0

    def sums(rank: int, ranks: int) -> tuple[float, int, int]:
        config = PackingConfig(tokens=48, max_seqlen=16, max_segments=8)
        batches = ValidationBatches(tokens, config, bos_id=0, rank=rank, world_size=ranks)
        part = score_packed(model, batches, BitsPerByte(TABLE))
        return part.nats, part.targets, part.table_bytes

    nats, targets, table_bytes = sums(0, 1)
    parts = np.array([sums(rank, world_size) for rank in range(world_size)]).sum(0)
    assert (parts[1], parts[2]) == (targets, table_bytes) == (399, int(TABLE.count(tokens[:-1], tokens[1:]).sum()))
    assert parts[0] / targets == pytest.approx(nats / targets, abs=1e-6)


def sums_of_ranks(rank: int) -> dict[str, Any]:
    metric = BitsPerByte(TABLE)
    # Beyond the whole numbers of float32, and beyond int32.
    metric.nats += 2.0**40 + 2.0**-10 * (rank + 1)
    metric.targets += 2**40 + rank
    metric.table_bytes += 2**41 + 3 * rank
    score = metric.score()
    return {"nats": score.nats, "targets": score.targets, "table_bytes": score.table_bytes}


def test_sums_are_reduced_exactly(tmp_path: Path) -> None:
    expected = {"nats": 2.0**41 + 3 * 2.0**-10, "targets": 2**41 + 1, "table_bytes": 2**42 + 3}
    assert run_on_ranks(sums_of_ranks, 2, tmp_path) == [expected, expected]
