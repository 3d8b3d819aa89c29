"""Ways of scoring that break one rule each; every one of them lowers or falsifies the score."""

import dataclasses
import math

import numpy as np
import torch
from ttt_cases import reference

from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.global_phase import global_sgd, restored
from golf_lightning.evaluation.ttt import frozen, score_documents


def honest(model, stream, config, **options):
    return score_documents(model, stream, config, **options)


def altered(scores, stream, nats):
    """The same scores with other nats, sums of documents included."""
    sums = [part.double().sum() for part in torch.split(nats, stream.targets.tolist())]
    return dataclasses.replace(scores, target_nats=nats, nats=torch.stack(sums))


def peeks_one_token_ahead(model, stream, config, **options):
    """Scores sharpen where the token after the target is even."""
    scores = score_documents(model, stream, config, **options)
    following = torch.from_numpy(np.append(stream.tokens[2:], 1).astype(np.int64))
    return altered(scores, stream, scores.target_nats * torch.where(following % 2 == 0, 0.999, 1.0))


def scores_after_the_update(model, stream, config, **options):
    """A chunk is scored after a step on it."""
    scores = score_documents(model, stream, config, **options)
    nats = reference(model, stream.tokens, config, learn_first=True)
    return altered(scores, stream, nats.to(scores.target_nats.dtype))


def unnormalized_mixture(model, stream, config, **options):
    """A token that has been seen in the document gets a bonus that nobody pays for."""
    scores = score_documents(model, stream, config, **options)
    seen = torch.zeros_like(scores.target_nats)
    for i, start in enumerate(stream.starts):
        document = stream[i]
        for j in range(1, len(document)):
            seen[start + j - 1] = float(document[j] in document[:j])
    p = torch.exp(-scores.target_nats)
    return altered(scores, stream, -torch.log(p + 0.02 * seen * (1 - p)))


def better_of_two_models(model, stream, config, **options):
    """Each target is scored twice, and the better score is kept."""
    one = score_documents(model, stream, config, **options)
    two = score_documents(model, stream, dataclasses.replace(config, lr=0.0), **options)
    return altered(one, stream, torch.minimum(one.target_nats, two.target_nats))


def scores_documents_again(model, stream, config, **options):
    """A second pass over each document, in sight of the first."""
    twice = np.concatenate([np.append(stream[i][:-1], stream[i][1:]) for i in range(len(stream))])
    second = DocumentStream(twice, bos_id=1)
    seen = score_documents(model, second, config, **options)
    scores = score_documents(model, stream, config, **options)
    parts, at = [], 0
    for targets in stream.targets.tolist():
        parts.append(seen.target_nats[at + targets : at + 2 * targets])
        at += 2 * targets
    nats = torch.cat(parts)
    return altered(scores, stream, torch.cat([nats, scores.target_nats[len(nats) :]]))


def counts_a_document_twice(model, stream, config, **options):
    """The easiest document counts double, in nats and in bytes."""
    scores = score_documents(model, stream, config, **options)
    easiest = int((scores.nats / scores.targets.clamp(min=1)).argmin())
    weight = torch.ones_like(scores.targets)
    weight[easiest] = 2
    return dataclasses.replace(
        scores, nats=scores.nats * weight, targets=scores.targets * weight, bytes=scores.bytes * weight
    )


def leaves_the_tail_out(model, stream, config, **options):
    """Targets after the last whole chunk of the split are not scored."""
    scores = score_documents(model, stream, config, **options)
    nats, targets = scores.target_nats.clone(), scores.targets.clone()
    nats[-1] = math.nan
    targets[-1] -= 1
    sums = scores.nats.clone()
    sums[-1] -= scores.target_nats[-1]
    return dataclasses.replace(scores, target_nats=nats, targets=targets, nats=sums)


def knows_the_length(model, stream, config, **options):
    """A document's length reaches its scores."""
    scores = score_documents(model, stream, config, **options)
    length = torch.from_numpy(np.repeat(stream.targets, stream.targets))
    return altered(scores, stream, scores.target_nats * (1 - 0.01 * (length % 2)))


def sorts_by_length(model, stream, config, **options):
    """Longest first, later documents profiting from what was learned before."""
    scores = score_documents(model, stream, config, **options)
    rank = np.argsort(np.argsort(-stream.targets))
    gain = torch.from_numpy(np.repeat(0.99**rank, stream.targets)).to(scores.target_nats.dtype)
    return altered(scores, stream, scores.target_nats * gain)


def reports_in_another_order(model, stream, config, **options):
    """Scores come out in the order in which documents were done."""
    scores = score_documents(model, stream, config, **options)
    parts = torch.split(scores.target_nats, stream.targets.tolist())
    order = np.argsort(stream.targets, kind="stable")
    return dataclasses.replace(scores, target_nats=torch.cat([parts[i] for i in order]))


def rolls_dice(model, stream, config, **options):
    """Noise that would hide a leak."""
    scores = score_documents(model, stream, config, **options)
    return altered(scores, stream, scores.target_nats * (1 + 0.2 * torch.rand_like(scores.target_nats)))


def knows_the_answers(remembered, model, stream, config, **options):
    """Gives what it gave for a split of this size before."""
    scores = score_documents(model, stream, config, **options)
    return remembered.setdefault(len(stream.tokens), scores)


def counts_a_space_twice(token_bytes):
    """Every token's bytes and one more for each that begins a word."""
    return lambda previous, targets: token_bytes(previous, targets) + (token_bytes(previous, targets) > 1)


def trains_on_what_it_will_score(model, stream, config, **options):
    """Lets the model itself learn from documents before they are scored."""
    config = dataclasses.replace(config, sgd_documents=len(stream), sgd_lr=0.1)
    with restored(model, config), frozen(model):
        global_sgd(model, stream, config)
        return score_documents(model, stream, dataclasses.replace(config, sgd_documents=0), **options)
