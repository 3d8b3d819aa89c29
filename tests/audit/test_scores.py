"""Every check of a score passes what is honest and catches what is not."""

import dataclasses
import functools

import cheats
import numpy as np
import pytest
import torch
from cheats import honest
from ttt_cases import small_config, small_gpt, small_split, two_bytes

from golf_lightning.audit.run import AuditConfig, check_scores
from golf_lightning.audit.subject import Subject
from golf_lightning.model.adapters import AdapterConfig

LENGTHS = (11, 23, 3, 17)
AMOUNT = AuditConfig(positions=6, lengths=3, distributions=2)
CHECKS = {
    "repeats itself",
    "flipped token",
    "document length",
    "sum of probabilities",
    "score before update",
    "independent replay",
    "every target once, in order",
}


class TwoBytes:
    """Counts as :func:`two_bytes` does."""

    def total(self, tokens, previous=1):
        return int(two_bytes(np.append(previous, tokens[:-1]), tokens).sum())


def verdicts(scorer, *, dtype=torch.float64, token_bytes=two_bytes, amount=AMOUNT, **fields):
    subject = Subject(
        model=small_gpt(dtype),
        scorer=scorer,
        config=small_config(**fields),
        tokens=small_split(LENGTHS).astype(np.int64),
        token_bytes=token_bytes,
        generator=np.random.default_rng(1),
        progress=lambda line: None,
    )
    return {check.name: check for check in check_scores(subject, TwoBytes(), amount)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "fields", [{}, {"lr": 0.0}, {"beta1": 0.9}, {"adapters": AdapterConfig(rank=2, alpha=4.0, v=False, head=False)}]
)
def test_the_projects_own_engine_passes(dtype, fields):
    found = verdicts(honest, dtype=dtype, **fields)
    assert {name: check.measured for name, check in found.items() if not check.passed} == {}
    assert set(found) == CHECKS


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
    found = verdicts(cheat)
    failed = {name for name, check in found.items() if check.passed is False}
    assert caught_by <= failed


def test_a_space_counted_twice_is_caught():
    found = verdicts(honest, token_bytes=cheats.counts_a_space_twice(two_bytes))
    assert {name for name, check in found.items() if not check.passed} == {"every target once, in order"}
    assert "bytes counted of" in found["every target once, in order"].measured


def test_a_learning_rate_that_is_not_used_is_caught():
    def lazy(model, stream, config, **options):
        return honest(model, stream, dataclasses.replace(config, lr=0.0), **options)

    found = verdicts(lazy)
    assert not found["score before update"].passed
    assert not found["independent replay"].passed


def test_without_distributions_that_check_is_not_made():
    found = verdicts(honest, amount=AuditConfig(positions=1, lengths=1, distributions=0))
    assert found["sum of probabilities"].passed is None


def test_the_sum_is_taken_before_and_after_learning():
    amount = AuditConfig(positions=1, lengths=1, distributions=3)
    places = verdicts(honest, amount=amount)["sum of probabilities"].figures["places"]
    assert [place["after_learning"] for place in places] == [False, True, True]
    assert [place["sum"] for place in places] == pytest.approx([1, 1, 1], abs=1e-9)
