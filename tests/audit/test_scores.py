"""Every check of a score passes what is honest and catches what is not."""

import dataclasses
import functools
import itertools

import cheats
import numpy as np
import pytest
import torch
from cheats import honest
from ttt_cases import small_config, small_gpt, small_split, two_bytes

from golf_lightning.audit.causality import check_flips, check_lengths, check_repeats
from golf_lightning.audit.counting import check_targets
from golf_lightning.audit.distribution import check_probabilities
from golf_lightning.audit.learning import check_first_chunks, check_replay
from golf_lightning.audit.run import AuditConfig, check_scores
from golf_lightning.audit.subject import Subject
from golf_lightning.audit.subject import small_split as small_split_of
from golf_lightning.errors import GolfError
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.model.adapters import AdapterConfig

LENGTHS = (9, 15, 3, 11)
PIECES = 9
"""Pieces of the vocabulary, few: a sum of probabilities takes a run for each."""
AMOUNT = AuditConfig(positions=4, lengths=2, distributions=2)


class TwoBytes:
    """Counts as :func:`two_bytes` does."""

    def total(self, tokens, previous=1):
        return int(two_bytes(np.append(previous, tokens[:-1]), tokens).sum())


def subject(scorer, *, dtype=torch.float64, token_bytes=two_bytes, **fields):
    tokens = small_split(LENGTHS).astype(np.int64)
    return Subject(
        model=small_gpt(dtype, vocab_size=PIECES),
        scorer=scorer,
        config=small_config(**fields),
        tokens=np.where(tokens == 1, 1, 2 + tokens % (PIECES - 2)),
        token_bytes=token_bytes,
        generator=np.random.default_rng(1),
        progress=lambda line: None,
    )


CHECKS = {
    "repeats itself": lambda subject, nats: check_repeats(subject, nats)[0],
    "flipped token": lambda subject, nats: check_flips(subject, nats, noise=0.0, count=6),
    "document length": lambda subject, nats: check_lengths(subject, nats, noise=0.0, count=3),
    "sum of probabilities": lambda subject, nats: check_probabilities(subject, 2),
    "score before update": lambda subject, nats: check_first_chunks(subject),
    "independent replay": check_replay,
    "every target once, in order": lambda subject, nats: check_targets(subject, subject.score(), TwoBytes()),
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dtype": torch.float32},
        {"lr": 0.0},
        {"beta1": 0.9, "steps": 2},
        {"adapters": AdapterConfig(rank=2, alpha=4.0, v=False, head=False)},
        {"mode": "cached"},
        {"mode": "cached", "steps": 2},
        {"sgd_documents": 2, "sgd_lr": 0.1},
    ],
)
def test_the_projects_own_engine_passes(fields):
    found = check_scores(subject(honest, **fields), TwoBytes(), AMOUNT)
    assert {check.name: check.measured for check in found if not check.passed} == {}
    assert {check.name for check in found} == set(CHECKS)


@pytest.mark.parametrize(
    ("cheat", "caught_by"),
    [
        (cheats.peeks_one_token_ahead, {"flipped token", "independent replay"}),
        (
            cheats.scores_after_the_update,
            {"flipped token", "sum of probabilities", "score before update", "independent replay"},
        ),
        (cheats.unnormalized_mixture, {"sum of probabilities", "independent replay"}),
        (cheats.better_of_two_models, {"sum of probabilities", "independent replay"}),
        (cheats.trains_on_what_it_will_score, {"flipped token", "independent replay"}),
        (cheats.scores_documents_again, {"flipped token", "independent replay"}),
        (cheats.counts_a_document_twice, {"every target once, in order"}),
        (cheats.leaves_the_tail_out, {"every target once, in order"}),
        (cheats.knows_the_length, {"document length", "independent replay"}),
        (cheats.sorts_by_length, {"document length", "independent replay"}),
        (cheats.reports_in_another_order, {"every target once, in order", "independent replay"}),
        (cheats.rolls_dice, {"repeats itself", "independent replay"}),
        (functools.partial(cheats.knows_the_answers, {}), {"flipped token"}),
    ],
    ids=lambda value: getattr(value, "__name__", "") or getattr(getattr(value, "func", None), "__name__", ""),
)
def test_a_cheat_is_caught(cheat, caught_by):
    cheating = subject(cheat)
    nats = cheating.nats()
    for name in caught_by:
        check = CHECKS[name](cheating, nats)
        assert (check.name, check.passed) == (name, False)


def test_an_order_that_looks_ahead_is_caught():
    ahead = subject(honest, order="sorted")
    found = CHECKS["every target once, in order"](ahead, None)
    assert not found.passed
    assert "not as the split has them" in found.measured


def test_a_space_counted_twice_is_caught():
    twice = subject(honest, token_bytes=cheats.counts_a_space_twice(two_bytes))
    found = CHECKS["every target once, in order"](twice, None)
    assert not found.passed
    assert "bytes counted of" in found.measured


def test_a_learning_rate_that_is_not_used_is_caught():
    def lazy(model, stream, config, **options):
        return honest(model, stream, dataclasses.replace(config, lr=0.0), **options)

    cheating = subject(lazy)
    assert not CHECKS["score before update"](cheating, None).passed
    assert not CHECKS["independent replay"](cheating, cheating.nats()).passed


def test_noise_is_allowed_for_and_no_more():
    """A scorer that does not repeat itself has to keep earlier scores within three times its own noise."""
    peeking = subject(cheats.peeks_one_token_ahead)
    nats = peeking.nats()
    leak = check_flips(peeking, nats, noise=0.0, count=12).figures["largest_change_nats"]
    assert leak > 0
    for noise, passed in ((leak / 2, True), (leak / 4, False)):
        peeking.generator = np.random.default_rng(1)
        assert check_flips(peeking, nats, noise, count=12).passed is passed


def test_without_places_the_sum_is_not_taken():
    assert check_probabilities(subject(honest), 0).passed is None


def test_the_sum_is_taken_before_and_after_learning():
    places = check_probabilities(subject(honest), 3).figures["places"]
    assert [place["after_learning"] for place in places] == [False, True, True]
    assert [place["sum"] for place in places] == pytest.approx([1, 1, 1], abs=1e-9)


def test_documents_too_short_for_learning_are_refused():
    short = subject(honest)
    short.tokens = small_split((3, 7)).astype(np.int64)
    with pytest.raises(GolfError, match="No document of the sample has more than 8 targets"):
        check_probabilities(short, 2)


def test_a_scorer_without_scores_of_targets_is_refused():
    def silent(model, stream, config, **options):
        return dataclasses.replace(honest(model, stream, config, **options), target_nats=None)

    with pytest.raises(GolfError, match="The scorer kept no score of each target"):
        subject(silent).nats()


@pytest.mark.parametrize("documents", [2, 3, 50])
def test_the_sample_holds_beginnings_of_documents(documents):
    tokens = small_split()
    stream = DocumentStream(tokens)
    sample = DocumentStream(small_split_of(stream, np.random.default_rng(0), documents=documents, longest=9))
    wholes = [tokens[a:b] for a, b in itertools.pairwise([*stream.starts, len(tokens)])]
    parts = [sample.tokens[a:b] for a, b in itertools.pairwise([*sample.starts, len(sample.tokens)])]
    assert len(parts) == min(documents, len(wholes))
    assert all(any(np.array_equal(part, whole[: len(part)]) for whole in wholes) for part in parts)
    assert np.array_equal(parts[0], wholes[0][: len(parts[0])])
    assert np.array_equal(parts[-1], wholes[-1][: len(parts[-1])])
    assert max(map(len, parts)) == 9
