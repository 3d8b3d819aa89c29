from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from golf_lightning.evaluation.slots import WindowPlan, schedule


@st.composite
def cases(draw):
    chunk = draw(st.integers(1, 6))
    window = chunk + draw(st.integers(0, 20))
    plan = WindowPlan(chunk=chunk, window=window, widths=draw(st.integers(1, 8)))
    targets = np.array(draw(st.lists(st.integers(0, 50), min_size=1, max_size=12)), dtype=np.int64)
    order = draw(st.permutations(range(len(targets))))
    return targets, order, plan, {"slots": draw(st.integers(1, 5)), "rows": window + draw(st.integers(0, 60))}


def entries(rounds):
    """(round, slot, document, first target, targets, fresh, trains) of each document of each step."""
    for number, steps in enumerate(rounds):
        for step in steps:
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
    for steps in schedule(targets, order, plan, **limits):
        for step in steps:
            start = step.first + step.row
            np.testing.assert_array_equal(step.first, np.maximum(start + plan.chunk - plan.window, 0))
            np.testing.assert_array_equal(step.first + step.length, start + step.count)
            assert (step.row + plan.chunk <= step.width).all()
            assert (step.length <= step.width).all()
            assert step.width <= plan.window


@given(cases())
def test_a_step_fits_in_its_rows_and_a_round_holds_a_slot_once(case):
    targets, order, plan, limits = case
    for steps in schedule(targets, order, plan, **limits):
        assert all(step.width * len(step.slots) <= limits["rows"] for step in steps)
        slots = np.concatenate([step.slots for step in steps])
        assert len(set(slots.tolist())) == len(slots) <= limits["slots"]
        assert slots.max() < limits["slots"]


@given(cases())
def test_a_document_keeps_its_slot_and_documents_enter_in_order(case):
    targets, order, plan, limits = case
    slot_of, entered = {}, []
    for number, slot, document, _, _, fresh, _ in entries(schedule(targets, order, plan, **limits)):
        if fresh:
            slot_of[document] = slot
            entered.append((number, slot, document))
        assert slot_of[document] == slot
    assert [document for _, _, document in sorted(entered)] == [i for i in order if targets[i]]


@given(cases())
def test_no_slot_waits_while_documents_do(case):
    targets, order, plan, limits = case
    waiting = sum(1 for n in targets if n)
    for steps in schedule(targets, order, plan, **limits):
        waiting -= sum(int(step.fresh.sum()) for step in steps)
        assert waiting == 0 or sum(len(step.slots) for step in steps) == limits["slots"]


@given(cases())
def test_work_is_the_tokens_of_all_steps(case):
    targets, order, plan, limits = case
    steps = [step for steps in schedule(targets, order, plan, **limits) for step in steps]
    assert plan.work(targets).sum() == sum(step.width * len(step.slots) for step in steps)


@given(cases())
def test_windows_have_no_more_lengths_than_asked_for(case):
    targets, order, plan, limits = case
    steps = [step for steps in schedule(targets, order, plan, **limits) for step in steps]
    assert len({step.width for step in steps}) <= plan.widths


def test_documents_are_taken_as_slots_come_free():
    taken = []
    documents = (taken.append(i) or i for i in range(4))
    plan = WindowPlan(chunk=2, window=4, widths=1)
    rounds = schedule(np.array([2, 4, 2, 2]), documents, plan, slots=2, rows=8)
    next(rounds)
    assert taken == [0, 1]
    next(rounds)
    assert taken == [0, 1, 2]
