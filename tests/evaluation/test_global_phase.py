"""A pass of SGD on the model between two parts of the stream: what it computes, and what it may not touch."""

import numpy as np
import pytest
import torch
from ttt_cases import LENGTHS, reference, score, small_config, small_gpt, small_split

from golf_lightning.errors import GolfError
from golf_lightning.evaluation import global_phase
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.global_phase import global_sgd
from golf_lightning.evaluation.journal import Journal, fingerprint
from golf_lightning.kernels.cross_entropy import IGNORED

BEFORE = 4
FIRST = sum(LENGTHS[:BEFORE])


def phased(**fields):
    return small_config(**{"sgd_documents": BEFORE, "sgd_lr": 0.3, **fields})


def learned_by_hand(model, config):
    """Batches of documents written out, and SGD as its formula."""
    documents = [torch.from_numpy(document) for document in DocumentStream(small_split())][:BEFORE]
    windows = [d[i : i + config.window + 1] for d in documents for i in range(0, len(d) - 1, config.window)]
    batches, rows = [[]], 0
    for window in windows:
        if rows + len(window) - 1 > global_phase.BATCH_TOKENS:
            batches, rows = [*batches, []], 0
        batches[-1].append(window)
        rows += len(window) - 1
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for batch in batches:
        nats = [model(w[:-1], w[1:], torch.tensor([0, len(w) - 1]).int()) for w in batch]
        gradients = torch.autograd.grad(torch.cat(nats).mean(), list(model.parameters()))
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g * min(1.0, 1.0 / (norm + 1e-6)))
                p.sub_(config.sgd_lr * v)
    return len(batches)


@pytest.mark.parametrize(("most", "batches"), [(10, 4), (64, 1)])
def test_documents_after_the_phase_are_scored_by_weights_that_learned_from_those_before(most, batches, monkeypatch):
    monkeypatch.setattr(global_phase, "BATCH_TOKENS", most)
    config, tokens = phased(), small_split()
    found = score(small_gpt(), tokens, config).target_nats
    plain, learned = small_gpt(), small_gpt()
    assert learned_by_hand(learned, config) == batches
    before, after = (reference(model, tokens, config) for model in (plain, learned))
    assert (found[:FIRST] - before[:FIRST]).abs().max() < 1e-9
    assert (found[FIRST:] - after[FIRST:]).abs().max() < 1e-9
    assert (before[FIRST:] - after[FIRST:]).abs().max() > 1e-3


def test_every_target_of_the_documents_is_learned_from_once(monkeypatch):
    monkeypatch.setattr(global_phase, "BATCH_TOKENS", 10)
    seen, model, config = [], small_gpt(), phased()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *given: seen.append(given) or forward(*given))
    global_sgd(model, DocumentStream(small_split()), config)
    targets = torch.cat([targets[targets != IGNORED] for _, targets, _ in seen])
    assert targets.tolist() == small_split()[1 : FIRST + 1].tolist()
    for tokens, targets, bounds in seen:
        assert len(tokens) == len(targets) == 16 and len(bounds) == 257
        assert (bounds.diff() <= config.window).all() and bounds[-1] == (targets != IGNORED).sum()


def test_the_phase_may_come_after_everything():
    tokens = small_split()
    found = score(small_gpt(), tokens, phased(sgd_documents=100))
    assert torch.equal(found.target_nats, score(small_gpt(), tokens, small_config()).target_nats)


def test_the_model_is_left_as_it_was():
    model = small_gpt()
    model.mix.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score(model, small_split(), phased())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["mix"]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("after", [3, 8])
def test_interrupted_scoring_gives_the_total_of_one_that_was_not(after, tmp_path):
    tokens, config = small_split(), phased()
    identity = fingerprint(small_gpt(), DocumentStream(tokens), config)
    seen = []

    def progress(now):
        seen.append(now)
        if len(seen) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal = Journal(tmp_path, 0, 1, identity)
        score(small_gpt(), tokens, config, progress=progress, interval_seconds=0.0, journal=journal)
    journal = Journal(tmp_path, 0, 1, identity)
    known = sorted(journal.all_known)
    assert (max(known) < BEFORE) if after == 3 else (known[-1] >= BEFORE and len(known) < len(LENGTHS))
    resumed = score(small_gpt(), tokens, config, journal=journal)
    whole = score(small_gpt(), tokens, config)
    torch.testing.assert_close(resumed.nats, whole.nats, rtol=1e-9, atol=0)


def test_several_ranks_are_refused_in_one_sentence():
    with pytest.raises(GolfError, match="runs in one process; use one device"):
        score(small_gpt(), small_split(), phased(), ranks=2)


def test_an_order_that_looks_ahead_and_negative_numbers_are_refused():
    with pytest.raises(GolfError, match="needs the documents in stream order"):
        phased(order="sorted")
    with pytest.raises(GolfError, match="sgd_documents is -1"):
        phased(sgd_documents=-1)
    with pytest.raises(GolfError, match="sgd_lr is nan"):
        phased(sgd_lr=float("nan"))


def test_scores_before_the_phase_know_nothing_of_what_comes_after():
    tokens, changed = small_split(), small_split()
    changed[FIRST + 6] = 2 + (changed[FIRST + 6] - 1) % 17
    before, after = (score(small_gpt(), t, phased()).target_nats for t in (tokens, changed))
    assert np.array_equal(before[: FIRST + 5], after[: FIRST + 5])
    assert before[FIRST + 5] != after[FIRST + 5]
