"""Interrupted scoring goes on where it stopped and gives the same total."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ttt_cases import LENGTHS, score, small_config, small_gpt, small_split

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.journal import Journal, fingerprint
from golf_lightning.files import write_json


def identity(model=None, tokens=None, **fields):
    stream = DocumentStream(small_split() if tokens is None else tokens)
    return fingerprint(model or small_gpt(), stream, small_config(**fields))


def interrupted(folder, after, **fields):
    """Score until ``after`` reports of progress, each of which is written, then be interrupted."""
    seen = []

    def progress(now):
        seen.append(now)
        if len(seen) == after:
            raise KeyboardInterrupt

    journal = Journal(folder, 0, 1, identity(**fields))
    with pytest.raises(KeyboardInterrupt):
        config = small_config(**fields)
        score(small_gpt(), small_split(), config, progress=progress, interval_seconds=0.0, journal=journal)


@pytest.mark.parametrize("mode", ["exact", "cached"])
@pytest.mark.parametrize("after", [2, 7])
def test_interrupted_scoring_gives_the_total_of_one_that_was_not(after, mode, tmp_path):
    interrupted(tmp_path, after, mode=mode)
    journal = Journal(tmp_path, 0, 1, identity(mode=mode))
    assert 0 < len(journal.all_known) < len(LENGTHS)
    resumed = score(small_gpt(), small_split(), small_config(mode=mode), journal=journal)
    whole = score(small_gpt(), small_split(), small_config(mode=mode))
    torch.testing.assert_close(resumed.nats, whole.nats, rtol=1e-9, atol=0)
    assert torch.equal(resumed.targets, whole.targets)
    assert torch.equal(resumed.bytes, whole.bytes)
    assert not resumed.partial


def test_finished_documents_are_not_scored_again(tmp_path):
    interrupted(tmp_path, 7)
    journal = Journal(tmp_path, 0, 1, identity())
    known = set(journal.all_known)
    resumed = score(small_gpt(), small_split(), small_config(), journal=journal)
    starts = DocumentStream(small_split()).starts
    fresh = {i for i in range(len(LENGTHS)) if resumed.target_nats[starts[i]].isfinite()}
    assert fresh == set(range(len(LENGTHS))) - known


@pytest.mark.parametrize("lanes", ["none", "isolated", "crossed"])
def test_every_weight_counts(lanes):
    model = small_gpt(lanes=lanes)
    known = {identity(model)}
    for parameter in model.parameters():
        parameter.data.view(-1)[-1] += 1.0
        known.add(identity(model))
    assert len(known) == 1 + len(list(model.parameters()))


def test_what_is_written_is_what_was_finished(tmp_path):
    scores = score(small_gpt(), small_split(), small_config(), journal=Journal(tmp_path, 0, 1, identity()))
    held = json.loads((tmp_path / "rank0.json").read_text())["documents"]
    assert {int(i): tuple(values) for i, values in held.items()} == {
        i: (nats, n) for i, (nats, n) in enumerate(zip(scores.nats.tolist(), LENGTHS, strict=True))
    }


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_files_of_more_ranks_are_shared_out_once(world_size, tmp_path):
    for rank in range(3):
        Journal(tmp_path, rank, 3, "same").write({rank: (float(rank), 5)})
    journals = [Journal(tmp_path, rank, world_size, "same") for rank in range(world_size)]
    assert all(set(journal.all_known) == {0, 1, 2} for journal in journals)
    assert sorted(i for journal in journals for i in journal.known) == [0, 1, 2]


@settings(deadline=None, max_examples=60)
@given(sessions=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=2, max_size=6))
def test_every_document_has_one_owner_however_the_number_of_ranks_changes(sessions, tmp_path_factory):
    """Each session has a number of ranks and finishes some documents before it is interrupted."""
    folder, done = tmp_path_factory.mktemp("journal"), {}
    for ranks, finished in sessions:
        journals = [Journal(folder, rank, ranks, "same") for rank in range(ranks)]
        assert all(journal.all_known == done for journal in journals)
        owned = [i for journal in journals for i in journal.known]
        assert sorted(owned) == sorted(done)
        assert {i: values for journal in journals for i, values in journal.known.items()} == done
        new = {len(done) + i: (float(len(done) + i), ranks) for i in range(finished)}
        for rank, journal in enumerate(journals):
            if mine := {i: values for i, values in new.items() if i % ranks == rank}:
                journal.write(mine)
        done |= new


def test_seconds_of_interrupted_runs_add_up_by_the_slowest_rank(tmp_path):
    first = [Journal(tmp_path, rank, 3, "same") for rank in range(3)]
    for rank, seconds in enumerate((10.0, 30.0, 20.0)):
        first[rank].write({rank: (1.0, 1)}, score=seconds, warm_up=7.0 - rank)
    second = [Journal(tmp_path, rank, 2, "same") for rank in range(2)]
    assert all(journal.spent == {"score": 30.0, "warm_up": 7.0} for journal in second)
    second[0].write({3: (1.0, 1)}, score=5.0, warm_up=1.0)
    second[0].write({4: (1.0, 1)}, score=8.0, warm_up=1.0)
    assert Journal(tmp_path, 0, 1, "same").spent == {"score": 38.0, "warm_up": 8.0}


def test_a_file_of_before_seconds_were_kept_is_read(tmp_path):
    write_json(tmp_path / "rank0.json", {"identity": "same", "documents": {"3": [1.5, 4]}})
    journal = Journal(tmp_path, 0, 1, "same")
    assert journal.known == {3: (1.5, 4)}
    assert journal.spent == {"score": 0.0, "warm_up": 0.0}


def test_scores_tell_the_seconds_of_all_runs(tmp_path):
    interrupted(tmp_path, 7)
    held = json.loads((tmp_path / "rank0.json").read_text())
    assert held["seconds"]["score"] > 0 and held["seconds"]["warm_up"] > 0
    write_json(tmp_path / "rank0.json", held | {"seconds": {"score": 700.0, "warm_up": 50.0}})
    journal = Journal(tmp_path, 0, 1, identity())
    resumed = score(small_gpt(), small_split(), small_config(), journal=journal)
    assert 700 < resumed.seconds < 750
    assert 50 < resumed.warm_up_seconds < 100
    held = json.loads((tmp_path / "rank0.json").read_text())
    assert held["seconds"] == pytest.approx({"score": resumed.seconds, "warm_up": resumed.warm_up_seconds})


@pytest.mark.parametrize(("spent", "over"), [(0.0, False), (60.0, True)])
def test_the_budget_counts_the_seconds_of_interrupted_runs(spent, over, tmp_path, caplog):
    config = small_config(budget_seconds=100.0)
    Journal(tmp_path, 0, 1, identity()).write({}, score=spent, warm_up=spent)
    score(small_gpt(), small_split(), config, interval_seconds=0.0, journal=Journal(tmp_path, 0, 1, identity()))
    assert ("over the budget of 100 s" in caplog.text) is over


@pytest.mark.parametrize(
    "other",
    [
        {"model": small_gpt(seed=1)},
        {"model": small_gpt(recurrent=False)},
        {"tokens": small_split(seed=1)},
        {"chunk": 3},
        {"mode": "cached"},
        {"lr": 0.0},
    ],
    ids=["weights", "depth", "documents", "chunk", "mode", "lr"],
)
def test_sums_of_another_model_data_or_settings_are_refused(other, tmp_path):
    Journal(tmp_path, 0, 1, identity()).write({0: (1.0, 1)})
    with pytest.raises(GolfError, match="interrupted scoring of another model, other data or other settings"):
        Journal(tmp_path, 0, 1, identity(**other))


@pytest.mark.parametrize("other", [{"slots": 7}, {"rows": 128}, {"order": "sorted"}, {"budget_seconds": None}], ids=str)
def test_settings_of_speed_do_not_matter(other):
    assert identity(**other) == identity()


def test_a_known_document_given_again_is_a_defect(tmp_path):
    journal = Journal(tmp_path, 0, 1, identity())
    journal.all_known[2] = (1.0, LENGTHS[2])
    with pytest.raises(AssertionError, match="known"):
        score(small_gpt(), small_split(), small_config(), journal=journal, documents=[2, 3])


def test_remove_leaves_no_folder(tmp_path):
    folder = tmp_path / "unfinished"
    Journal(folder, 0, 1, "same").write({0: (1.0, 1)})
    Journal.remove(folder)
    assert not folder.exists()
    Journal.remove(folder)
