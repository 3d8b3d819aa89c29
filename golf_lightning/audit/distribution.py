"""Is a score the logarithm of a probability in a distribution that exists before the target is known?"""

import dataclasses

import numpy as np
import torch

from golf_lightning.audit.report import Check
from golf_lightning.audit.subject import Subject, Tokens
from golf_lightning.errors import GolfError

# V vocabulary

LIKELIEST = 64
"""Tokens that are scored again in a stream of their own."""


def check_probabilities(subject: Subject, count: int) -> Check:
    """Whether the probabilities of all tokens of the vocabulary add up to 1, by scoring every one of them.

    The scorer is a closed box here: it scores V documents that differ in one token alone, and go on into the next
    chunk, so that a scorer that learns first has something to learn from. In the first chunk of
    a document all of them are scored by the same weights. Later each has learned from the same text, but started from
    the noise of its own place in the stream. The likeliest tokens, which hold nearly all of the sum, are therefore
    scored again in streams of their own, all in the first place; what is left strays by as much as the rest differs.

    Args:
        subject: what is audited.
        count: places, one in the first chunk of a document and the others after learning.
    """
    if count == 0:
        return Check(
            name="sum of probabilities",
            passed=None,
            measured="not asked for",
            expected="1",
            sentence="No place was asked for; give --distributions.",
        )
    sums, faults = [], 0
    for number, (document, place) in enumerate(_places(subject, count), start=1):
        subject.progress(f"scoring the whole vocabulary, place {number} of {count}")
        learned = subject.config.lr > 0 and place > subject.config.chunk
        total = _total(subject, document, place, again=learned)
        exact = not learned or subject.model.config.vocab_size <= LIKELIEST
        allowed = subject.tolerance.total if exact else subject.tolerance.adapted
        faults += not abs(total - 1) <= allowed
        sums.append({"tokens_before": place, "after_learning": learned, "sum": total, "allowed": allowed})
    return Check(
        name="sum of probabilities",
        passed=faults == 0,
        measured=", ".join(f"{entry['sum']:.6f}{' adapted' if entry['after_learning'] else ''}" for entry in sums),
        expected=f"1 within {subject.tolerance.total:g}, adapted within {subject.tolerance.adapted:g}",
        sentence=f"At {count} places each of the {subject.model.config.vocab_size:,} tokens was put in as the "
        "target and scored in a document of its own; the probabilities must add up to 1. A score fixed after learning "
        "from its target, or a bonus for likely targets, makes the sum larger.",
        figures={"places": sums},
    )


def _places(subject: Subject, count: int) -> list[tuple[Tokens, int]]:
    """Documents that end one target after the chunk of a place, and that place."""
    stream, chunk = subject.stream, subject.config.chunk
    longest = stream[int(np.argmax(stream.targets))]
    if len(longest) <= 2 * chunk + 1:
        raise GolfError(
            f"No document of the sample has more than {2 * chunk} targets, two chunks; "
            "use data with longer documents, or smaller chunks."
        )
    # In the second chunk something has been learned; later ones cost more and show nothing new.
    places = [
        subject.generator.integers(1, chunk + 1),
        *subject.generator.integers(chunk + 1, 2 * chunk + 1, count - 1),
    ]
    return [(longest[: -(-int(place) // chunk) * chunk + 2], int(place)) for place in places]


def _total(subject: Subject, document: Tokens, place: int, *, again: bool) -> float:
    """Sum of the probabilities of all tokens at a place of a document."""

    def variant(token: int) -> Tokens:
        changed = document.copy()
        changed[place] = token
        return changed

    vocabulary, length = subject.model.config.vocab_size, len(document)
    # All of them from the same weights: a global phase would have learned from the document's other variants.
    config = dataclasses.replace(subject.config, sgd_documents=0)
    nats = subject.nats(np.concatenate([variant(token) for token in range(vocabulary)]), config)
    p_V = torch.exp(-nats[place - 1 :: length].clone())
    assert len(p_V) == vocabulary, "one target at this place for each token of the vocabulary"
    if again:
        for token in p_V.topk(min(LIKELIEST, vocabulary)).indices.tolist():
            p_V[token] = torch.exp(-subject.nats(variant(token), config)[place - 1])
    return float(p_V.sum())
