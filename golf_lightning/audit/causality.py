"""Does a score know anything of what comes after it?

The flip test: change one token of the split, score it again, and look at the scores of all targets before that token.
"""

import numpy as np
import torch
from torch import Tensor

from golf_lightning.audit.report import Check
from golf_lightning.audit.subject import Subject, Tokens
from golf_lightning.data.tokenizer import BOS

# N tokens of the split; target i of it is token i + 1


def check_repeats(subject: Subject, nats: Tensor) -> tuple[Check, float]:
    """Whether the same split gets the same scores again; also returns the largest difference in nats.

    Args:
        subject: what is audited.
        nats: ``[N - 1]`` scores of the small split.
    """
    subject.progress("scoring the same documents again")
    noise = float((subject.nats() - nats).abs().max())
    check = Check(
        name="repeats itself",
        passed=noise <= subject.tolerance.largest,
        measured="bit-equal" if noise == 0 else f"up to {noise:.2g} nats apart",
        expected=f"bit-equal, or rounding of at most {subject.tolerance.largest:g} nats",
        sentence=f"{len(nats):,} targets of {len(subject.stream)} documents were scored twice. What differs here is "
        "noise that later checks have to allow for; deterministic kernels leave none.",
        figures={"targets": len(nats), "largest_difference_nats": noise},
    )
    return check, noise


def check_flips(subject: Subject, nats: Tensor, noise: float, count: int) -> Check:
    """Whether changing a token leaves all earlier scores alone.

    Args:
        subject: what is audited.
        nats: ``[N - 1]`` scores of the small split.
        noise: how far two runs lie apart; scores must be bit-equal where it is 0.
        count: flips.
    """
    places = np.flatnonzero(subject.tokens != BOS)
    places = np.sort(subject.generator.choice(places, min(count, len(places)), replace=False))
    moved, own, worst = 0, 0, 0.0
    for number, place in enumerate(places, start=1):
        subject.progress(f"flipping token {number} of {len(places)}")
        changed = subject.tokens.copy()
        changed[place] = subject.other_token(int(changed[place]))
        after = subject.nats(changed)
        difference = _difference(nats[: place - 1], after[: place - 1])
        worst = max(worst, difference)
        moved += difference > 3 * noise
        own += bool(after[place - 1] != nats[place - 1])
    return Check(
        name="flipped token",
        passed=moved == 0 and own > 0,
        measured=f"{moved} of {len(places)} flips moved an earlier score"
        + ("" if own else "; no flip moved its own score, so nothing is being scored"),
        expected="0",
        sentence=f"{len(places)} random tokens were changed one at a time, each followed by scoring with test-time "
        f"training from the start. Scores of earlier targets, in all documents, {_allowance(noise)}.",
        figures={"flips": len(places), "moved": moved, "own_scores_moved": own, "largest_change_nats": worst},
    )


def check_lengths(subject: Subject, nats: Tensor, noise: float, count: int) -> Check:
    """Whether where a document ends, and what follows it, leaves all earlier scores alone.

    A document ends early in two ways: a BOS takes the place of a token, or the split ends there. Batches then have
    other shapes, so rounding is allowed for.

    Args:
        subject: what is audited.
        nats: ``[N - 1]`` scores of the small split.
        noise: how far two runs lie apart.
        count: places at which to end a document, each in both ways.
    """
    places = np.flatnonzero(subject.tokens != BOS)
    places = np.sort(subject.generator.choice(places[places > 2], min(count, len(places) - 2), replace=False))
    worst, mean = 0.0, 0.0
    for number, place in enumerate(places, start=1):
        subject.progress(f"ending a document early, {number} of {len(places)}")
        for changed in (_ended(subject.tokens, place), subject.tokens[:place]):
            moved = subject.nats(changed)[: place - 1] - nats[: place - 1]
            worst = max(worst, _difference(moved, torch.zeros_like(moved)))
            mean = max(mean, abs(float(moved.mean())))
    tolerance = subject.tolerance
    return Check(
        name="document length",
        passed=worst <= max(tolerance.largest, 3 * noise) and mean <= tolerance.mean,
        measured=f"earlier scores moved by at most {worst:.2g} nats, on average by at most {mean:.2g}",
        expected=f"at most {tolerance.largest:g} and {tolerance.mean:g}",
        sentence=f"At {len(places)} random places a document was ended early, by a BOS and by the end of the split. "
        "Neither the length of a document nor what follows it may reach the scores before; batches of other shapes "
        "round differently, which is allowed for.",
        figures={"places": len(places), "largest_change_nats": worst, "mean_change_nats": mean},
    )


def _ended(tokens: Tokens, place: np.integer) -> Tokens:
    changed = tokens.copy()
    changed[place] = BOS
    return changed


def _difference(one: Tensor, two: Tensor) -> float:
    """Largest difference; infinite where a score is missing, 0 for no scores."""
    if not len(one):
        return 0.0
    difference = (one - two).abs()
    return float(torch.where(difference.isnan(), torch.inf, difference).max())


def _allowance(noise: float) -> str:
    if noise == 0:
        return "must not change by a bit"
    return f"must not change by more than 3 times the noise of {noise:.2g} nats between two equal runs"
