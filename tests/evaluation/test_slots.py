from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from golf_lightning.evaluation.slots import WindowPlan, schedule


@st.composite
def cases(draw):
    chunk = draw(st.integers(1, 6))
    window = chunk + draw(st.integers(0, 20))
    plan = WindowPlan(chunk=chunk, window=window, cached=draw(st.booleans()), tile=draw(st.integers(1, 8)))
    targets = np.array(draw(st.lists(st.integers(0, 50), min_size=1, max_size=12)), dtype=np.int64)
    order = draw(st.permutations(range(len(targets))))
    rows = plan.window_rows + draw(st.integers(0, 60))
    return targets, order, plan, {"slots": draw(st.integers(1, 5)), "rows": rows, "together": draw(st.integers(1, 4))}


def entries(steps):
    """(step, slot, document, first target, targets, fresh, trains) of each document of each step."""
    for number, step in enumerate(steps):
        columns = (step.slots, step.documents, step.first + step.row, step.count, step.fresh, step.trains)
        for row in zip(*(column.tolist() for column in columns), strict=True):
            yield number, *row


@given(cases())
def test_every_target_runs_once_and_in_order(case):
    targets, order, plan, limits = case
    done = Counter()
    for _, _, document, start, count, fresh, trains in entries(schedule(targets, order, plan, **limits)):
        assert start == done[document]
        assert count > 0
        done[document] += count
        assert fresh == (start == 0)
        assert trains == (done[document] < targets[document])
    assert done == Counter({i: int(n) for i, n in enumerate(targets) if n})


@given(cases())
def test_a_chunk_is_cut_at_multiples_of_its_length(case):
    targets, order, plan, limits = case
    for _, _, document, start, count, _, _ in entries(schedule(targets, order, plan, **limits)):
        assert start % plan.chunk == 0
        assert count == min(plan.chunk, targets[document] - start)


@given(cases())
def test_a_window_ends_with_its_chunk_and_starts_where_a_full_chunks_would(case):
    targets, order, plan, limits = case
    for step in schedule(targets, order, plan, **limits):
        start = step.first + step.row
        first = start if plan.cached else np.maximum(start + plan.chunk - plan.window, 0)
        np.testing.assert_array_equal(step.first, first)
        np.testing.assert_array_equal(step.first + step.length, start + step.count)
        assert (step.row + step.count <= step.rows).all()
        assert (step.rows % plan.tile == 0).all()
        assert (step.rows < np.minimum(step.row + plan.chunk, plan.window) + plan.tile).all()


@given(cases())
def test_a_step_fits_in_its_rows_and_holds_a_slot_once(case):
    targets, order, plan, limits = case
    for step in schedule(targets, order, plan, **limits):
        assert 0 < step.rows.sum() <= limits["rows"]
        assert len(set(step.slots.tolist())) == len(step.slots) <= min(limits["slots"], limits["together"])
        assert step.slots.max() < limits["slots"]


@given(cases())
def test_a_document_keeps_its_slot_and_has_it_alone(case):
    targets, order, plan, limits = case
    holder = {}
    for _, slot, document, _, _, fresh, trains in entries(schedule(targets, order, plan, **limits)):
        assert slot not in holder if fresh else holder[slot] == document
        holder[slot] = document
        if not trains:
            del holder[slot]
    assert not holder


@given(cases())
def test_work_is_the_rows_of_all_steps(case):
    targets, order, plan, limits = case
    steps = list(schedule(targets, order, plan, **limits))
    assert plan.work(targets).sum() == sum(step.rows.sum() for step in steps)


def test_documents_enter_in_the_order_given_as_slots_come_free():
    taken = []
    documents = (taken.append(i) or i for i in (3, 1, 0, 2))
    plan = WindowPlan(chunk=2, window=4, cached=False, tile=1)
    steps = schedule(np.array([2, 4, 2, 2]), documents, plan, slots=2, rows=8, together=8)
    next(steps)
    assert taken == [3, 1]
    next(steps)
    assert taken == [3, 1, 0]


def test_the_document_with_the_most_to_come_goes_first():
    plan = WindowPlan(chunk=2, window=2, cached=False, tile=1)
    steps = schedule(np.array([2, 6, 4]), range(3), plan, slots=3, rows=2, together=8)
    assert [int(step.documents[0]) for step in steps] == [1, 1, 2, 0, 1, 2]


def test_documents_near_their_end_are_not_held_up_while_others_wait():
    plan = WindowPlan(chunk=1, window=1, cached=True, tile=1)
    steps = list(schedule(np.array([6, 6, 6, 6, 1, 6]), range(6), plan, slots=5, rows=4, together=8))
    assert 5 in steps[1].documents.tolist()
    assert len(steps) == 8  # 31 targets, four at a time
