"""Packed batches hold every token once, in order, with the document bounds that attention needs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golf_lightning.data.batch import IGNORED, PackedBatch
from golf_lightning.data.packing import PackingConfig, ValidationBatches, pack_training_run, training_batches
from golf_lightning.data.stream import TokenStream
from golf_lightning.errors import GolfError

BOS = 1

documents = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(
    lambda lengths: np.concatenate([np.array([BOS, *range(2, 1 + n)], dtype=np.uint16) for n in lengths])
)
shapes = st.tuples(st.integers(8, 64), st.integers(1, 8), st.integers(0, 6)).map(
    lambda s: PackingConfig(tokens=s[0], max_seqlen=s[1], max_segments=-(-s[0] // s[1]) + s[2])
)


def segments(batch: PackedBatch) -> list[np.ndarray]:
    bounds = batch.cu_seqlens.tolist()
    return [batch.tokens[a:b].numpy() for a, b in zip(bounds, bounds[1:], strict=False) if b > a]


@settings(max_examples=60, deadline=None)
@given(documents, shapes)
def test_validation_scores_every_target_once_in_order(tokens: np.ndarray, config: PackingConfig) -> None:
    batches = list(ValidationBatches(tokens, config, bos_id=BOS))
    scored = np.concatenate([b.targets[b.targets != IGNORED].numpy() for b in batches])
    np.testing.assert_array_equal(scored, tokens[1:])


@settings(max_examples=60, deadline=None)
@given(documents, shapes)
def test_no_segment_crosses_a_document_or_exceeds_its_length(tokens: np.ndarray, config: PackingConfig) -> None:
    for batch in ValidationBatches(tokens, config, bos_id=BOS):
        for segment in segments(batch):
            assert len(segment) <= config.max_seqlen
            assert not (segment[1:] == BOS).any()


@settings(max_examples=40, deadline=None)
@given(documents, shapes, shapes)
def test_validation_segments_do_not_depend_on_the_batch_size(
    tokens: np.ndarray, one: PackingConfig, two: PackingConfig
) -> None:
    two = PackingConfig(
        tokens=max(two.tokens, one.max_seqlen), max_seqlen=one.max_seqlen, max_segments=two.tokens + one.tokens
    )
    cuts = [
        [s.tolist() for batch in ValidationBatches(tokens, config, bos_id=BOS) for s in segments(batch)]
        for config in (one, two)
    ]
    assert cuts[0] == cuts[1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_validation_batches(world_size: int) -> None:
    tokens = np.array([BOS, 2, 3, 4, 5] * 20, dtype=np.uint16)
    config = PackingConfig(tokens=8, max_seqlen=5, max_segments=8)
    parts = [
        list(ValidationBatches(tokens, config, bos_id=BOS, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    whole = list(ValidationBatches(tokens, config, bos_id=BOS))
    dealt = [parts[i % world_size][i // world_size] for i in range(len(whole))]
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(dealt, whole, strict=True))


@settings(max_examples=60, deadline=None)
@given(documents, shapes, st.integers(0, 500))
def test_training_batches_follow_the_stream_without_gap(
    tokens: np.ndarray, config: PackingConfig, position: int
) -> None:
    stream = TokenStream([tokens])
    for _ in range(4):
        batch = pack_training_run(stream, position, config, BOS)
        used = int(batch.cu_seqlens[-1])
        expected, _ = stream.read(position, used + 1)
        np.testing.assert_array_equal(batch.tokens[:used].numpy(), expected[:-1])
        np.testing.assert_array_equal(batch.targets[:used].numpy(), expected[1:])
        assert (batch.targets[used:] == IGNORED).all()
        assert batch.next_position == position + used
        position = batch.next_position


def test_training_batch_with_too_many_documents_leaves_the_rest_for_the_next() -> None:
    stream = TokenStream([np.array([BOS, 5] * 50, dtype=np.uint16)])
    batch = pack_training_run(stream, 0, PackingConfig(tokens=16, max_seqlen=4, max_segments=5), BOS)
    assert batch.cu_seqlens.tolist() == [0, 2, 4, 6, 8, 10]
    assert batch.next_position == 10


def test_shapes_never_change() -> None:
    stream = TokenStream([np.array([BOS, 5, 6] * 11, dtype=np.uint16)])
    config = PackingConfig(tokens=16, max_seqlen=4, max_segments=6)
    batches = training_batches(stream, config, bos_id=BOS)
    assert {(b.tokens.shape, b.targets.shape, b.cu_seqlens.shape) for b, _ in zip(batches, range(9), strict=False)} == {
        ((16,), (16,), (7,))
    }


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_see_the_batches_that_one_rank_accumulates(world_size: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.choice(np.array([BOS, 2, 3, 4], dtype=np.uint16), 500)
    stream, config = TokenStream([tokens]), PackingConfig(tokens=32, max_seqlen=8, max_segments=9)
    alone = training_batches(stream, config, bos_id=BOS)
    ranks = [training_batches(stream, config, bos_id=BOS, rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(5):
        round_of_ranks = [next(rank) for rank in ranks]
        accumulated = [next(alone) for _ in range(world_size)]
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(round_of_ranks, accumulated, strict=True))
        assert {batch.next_position for batch in round_of_ranks} == {accumulated[-1].next_position}


def test_shuffled_shards_never_join_two_documents() -> None:
    # The second shard continues a document of the first, as the contest's shards do.
    shards = [np.array([BOS, 2, 3, 4], dtype=np.uint16), np.array([5, 6, BOS, 7], dtype=np.uint16)]
    orders = set()
    for seed in range(8):
        stream = TokenStream(shards, shuffle_seed=seed)
        tokens, joints = stream.read(0, 8)
        orders.add(tuple(tokens.tolist()))
        batch = pack_training_run(stream, 0, PackingConfig(tokens=7, max_seqlen=7, max_segments=7), BOS)
        assert joints == [4]
        assert 4 in batch.cu_seqlens.tolist()
        assert (batch.targets[3] == IGNORED) == (tokens[4] != BOS)
    assert len(orders) == 2


def test_stream_in_order_repeats_and_joins_nothing() -> None:
    stream = TokenStream([np.arange(3, dtype=np.uint16), np.arange(3, 5, dtype=np.uint16)])
    tokens, joints = stream.read(4, 7)
    assert tokens.tolist() == [4, 0, 1, 2, 3, 4, 0]
    assert joints == []


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"tokens": 100, "max_seqlen": 200}, "does not hold one segment"),
        ({"tokens": 100, "max_seqlen": 10, "max_segments": 9}, "max_segments 9 times 10 tokens cannot fill 100"),
        ({"tokens": 100, "max_seqlen": 0}, "at least 1"),
    ],
)
def test_impossible_shapes_are_refused(shape: dict[str, int], message: str) -> None:
    with pytest.raises(GolfError, match=message):
        PackingConfig(**shape)
