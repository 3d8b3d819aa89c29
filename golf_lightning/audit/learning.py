"""Is a score fixed before anything has learned from it?"""

import dataclasses

import torch
from torch import Tensor

from golf_lightning.audit.replay import exact_copy, replay_document
from golf_lightning.audit.report import Check
from golf_lightning.audit.subject import Subject
from golf_lightning.evaluation.global_phase import global_sgd

# N tokens of the split


def check_first_chunks(subject: Subject) -> Check:
    """Whether the first chunk of every document gets the same scores at any learning rate.

    Nothing has been learned before it, so a difference comes from its own targets, or from other documents.

    Args:
        subject: what is audited; its learning rate is taken ten times, to make a leak plain.
    """
    if subject.config.lr == 0:
        return Check(
            name="score before update",
            passed=True,
            measured="learning rate 0",
            expected="first chunks alike at every learning rate",
            sentence="This run learns nothing while it scores.",
        )
    subject.progress("scoring with learning rate 0 and with ten times the learning rate")
    still, fast = (
        subject.nats(config=dataclasses.replace(subject.config, lr=lr)) for lr in (0.0, 10 * subject.config.lr)
    )
    first = torch.zeros(len(still), dtype=torch.bool)
    for start, targets in zip(subject.stream.starts, subject.stream.targets, strict=True):
        first[start : start + min(int(targets), subject.config.chunk)] = True
    moved = fast - still
    largest, mean, learned = (
        float(x) for x in (moved[first].abs().max(), moved[first].mean(), moved[~first].abs().mean())
    )
    return Check(
        name="score before update",
        passed=largest <= subject.tolerance.largest and abs(mean) <= subject.tolerance.mean and learned > 0,
        measured=f"first chunks moved by at most {largest:.2g} nats, on average by {mean:+.2g}; "
        f"later targets by {learned:.2g} on average",
        expected=f"first chunks at most {subject.tolerance.largest:g} and {subject.tolerance.mean:g}; later ones move",
        sentence="The documents were scored with learning rate 0 and with ten times the run's. First chunks must get "
        "the same scores, because nothing was learned before them; later chunks must not, or learning is switched off.",
        figures={"largest_nats": largest, "mean_nats": mean, "later_mean_abs_nats": learned},
    )


def check_replay(subject: Subject, nats: Tensor) -> Check:
    """Whether an independent implementation in float64 finds the same score for every target.

    Args:
        subject: what is audited.
        nats: ``[N - 1]`` scores of the small split.
    """
    exact = exact_copy(subject.model)
    stream, device = subject.stream, exact.embedding.device
    scores, stray = [], 0.0
    for document in range(len(stream)):
        if document == subject.config.sgd_documents > 0:
            global_sgd(exact, stream, subject.config)
        subject.progress(f"replaying document {document + 1} of {len(stream)} in float64")
        if stream.targets[document]:
            tokens = torch.from_numpy(stream[document]).to(device)
            ours, away = replay_document(exact, tokens, document, subject.config)
            scores.append(ours.cpu())
            stray = max(stray, away)
    difference = nats - torch.cat(scores)
    largest, mean = float(difference.abs().nan_to_num(torch.inf).max()), float(difference.mean())
    tolerance = subject.tolerance
    return Check(
        name="independent replay",
        passed=largest <= tolerance.largest and abs(mean) <= tolerance.mean and stray < 1e-9,
        measured=f"scores differ by at most {largest:.2g} nats, on average by {mean:+.2g}; "
        f"probabilities sum to 1 within {stray:.1g}",
        expected=f"at most {tolerance.largest:g} and {tolerance.mean:g}; 1 within 1e-9",
        sentence=f"{len(stream)} documents were scored chunk by chunk by a plain program in float64: a full softmax "
        "with the adapters of that moment, the target's score is minus its logarithm, then one step of torch's AdamW. "
        "Every score of the run's engine must be that number.",
        figures={"targets": len(nats), "largest_nats": largest, "mean_nats": mean, "sum_off_by": stray},
    )
