import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.documents import DocumentStream

splits = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(lambda rest: np.array([1, *rest], dtype=np.uint16))


@given(splits)
def test_documents_hold_every_target_of_the_split_once(tokens):
    stream = DocumentStream(tokens)
    targets = np.concatenate([stream[i][1:] for i in range(len(stream))])
    np.testing.assert_array_equal(targets, tokens[1:])
    assert stream.total_targets == len(tokens) - 1


@given(splits)
def test_documents_start_with_bos_and_end_with_the_next_one(tokens):
    stream = DocumentStream(tokens)
    for i in range(len(stream)):
        bos = np.flatnonzero(stream[i] == 1)
        assert list(bos) == ([0] if i == len(stream) - 1 else [0, len(stream[i]) - 1])


def test_the_last_document_has_no_next_bos():
    stream = DocumentStream(np.array([1, 5, 6, 1, 7], dtype=np.uint16))
    assert [stream[i].tolist() for i in range(2)] == [[1, 5, 6, 1], [1, 7]]


def test_a_bos_that_ends_the_split_has_no_target():
    assert DocumentStream(np.array([1, 5, 1], dtype=np.uint16)).targets.tolist() == [2, 0]


def test_another_bos_id_cuts_elsewhere():
    assert len(DocumentStream(np.array([3, 1, 3, 1, 1], dtype=np.uint16), bos_id=3)) == 2


def test_a_memory_map_is_not_copied(tmp_path):
    path = tmp_path / "tokens"
    np.array([1, 4, 1, 6], dtype=np.uint16).tofile(path)
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    assert DocumentStream(tokens).tokens is tokens


@pytest.mark.parametrize(
    ("part", "left"),
    [({"max_documents": 2}, 2), ({"fraction": 0.3}, 2), ({"fraction": 0.9, "max_documents": 1}, 1)],
)
def test_a_part_is_the_first_documents_and_says_so(part, left):
    stream = DocumentStream(np.array([1, 5, 1, 6, 7, 1, 8, 1, 9], dtype=np.uint16))
    taken = stream.part(**part)
    assert taken.partial
    assert [taken[i].tolist() for i in range(len(taken))] == [stream[i].tolist() for i in range(left)]


def test_all_documents_are_no_part():
    stream = DocumentStream(np.array([1, 5, 1, 6], dtype=np.uint16))
    assert not stream.part(max_documents=2, fraction=1.0).partial


@pytest.mark.parametrize("tokens", [[], [1]])
def test_a_split_without_targets_is_refused(tokens):
    with pytest.raises(GolfError, match="nothing to score"):
        DocumentStream(np.array(tokens, dtype=np.uint16))


def test_a_split_that_does_not_start_with_bos_is_refused():
    with pytest.raises(GolfError, match=r"starts with token 5 and not with BOS \(1\)"):
        DocumentStream(np.array([5, 1, 6], dtype=np.uint16))


@pytest.mark.parametrize("part", [{"max_documents": 0}, {"fraction": 0.0}, {"fraction": 1.1}, {"fraction": np.nan}])
def test_an_impossible_part_is_refused(part):
    with pytest.raises(GolfError, match="it must be at least 1|choose a share"):
        DocumentStream(np.array([1, 5], dtype=np.uint16)).part(**part)
