"""Low-rank products by slot, attention to kept keys, and AdamW by slot: against formulas in float64.

The Triton kernels run here in Triton's interpreter where the package is installed, and in tests/gpu on a GPU.
"""

import pytest
import torch
import torch.nn.functional as F
from without_gpu import interpret, needs_triton

from golf_lightning.kernels.chunk_attention import Chunks, Kept, chunk_attention, keep_, places
from golf_lightning.kernels.low_rank import Learner, RowSlots, low_rank
from golf_lightning.kernels.slot_adamw import AdamWConstants, Learning, SlotTensor, adamw_, corrections

SLOTS, WIDTH, OUTPUTS, RANK = 5, 6, 10, 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def rows_of(*lengths, tile=2):
    """Segments in slots 3, 0 and 2, of which slot 0 does not learn, and a tile of padding."""
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    slots, learners = (torch.tensor(x, dtype=torch.int32) for x in ([3, 0, 2], [3, SLOTS - 1, 2]))
    return RowSlots(bounds, slots, learners, total=sum(lengths) + tile, tile=tile, span=4, last=SLOTS - 1)


def inputs(columns):
    width = sum(end - begin for begin, end in columns)
    shapes = ((14, OUTPUTS), (14, WIDTH), (SLOTS, RANK * len(columns), WIDTH), (SLOTS, width, RANK))
    return [random(*shape) for shape in shapes]


def by_hand(base, x, a, b, columns, alpha, scale):
    """Row by row, with plain matrix products."""
    out = base.clone()
    for slot, rows in ((3, slice(0, 4)), (0, slice(4, 6)), (2, slice(6, 12))):
        first = 0
        for i, (begin, end) in enumerate(columns):
            inner = alpha * x[rows] @ a[slot, i * RANK : (i + 1) * RANK].T
            added = inner @ b[slot, first : first + end - begin].T
            out[rows, begin:end] = base[rows, begin:end] + scale[begin:end] * added
            first += end - begin
    return out


@pytest.mark.parametrize("columns", [[(0, 4), (4, 7), (7, 10)], [(2, 6)], [(0, 10)]], ids=str)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_low_rank_products_and_their_gradients_are_those_of_each_slot(backend, columns):
    tensors, scale, weight = inputs(columns), random(OUTPUTS).detach(), random(14, OUTPUTS).detach()
    rows = rows_of(4, 2, 6)
    found = low_rank(*tensors, rows, columns, alpha=1.5, scale_O=scale, backend=backend)
    expected = by_hand(*tensors, columns, 1.5, scale)
    torch.testing.assert_close(found, expected)
    got, wanted = (torch.autograd.grad((out * weight).sum(), tensors) for out in (found, expected))
    torch.testing.assert_close(got[:2], wanted[:2])
    for mine, theirs in zip(got[2:], wanted[2:], strict=True):
        torch.testing.assert_close(mine[[3, 2]], theirs[[3, 2]])


@pytest.mark.parametrize(("tile", "span"), [(2, 4), (4, 4), (3, 128), (8, 4)])
def test_spans_hold_every_row_once_with_its_slot(tile, span):
    lengths = torch.tensor([3, 0, 1, 7, 0]) * tile
    bounds = F.pad(lengths.cumsum(0), (1, 0)).int()
    slots = torch.tensor([3, 1, 0, 2, 4], dtype=torch.int32)
    rows = RowSlots(bounds, slots, slots, total=13 * tile, tile=tile, span=span, last=SLOTS - 1)
    seen = torch.full((13 * tile,), -1)
    for first, end, slot in rows.spans.tolist():
        for row in range(first, min(first + span, end)):
            assert seen[row] == -1
            seen[row] = slot
    assert seen.tolist() == rows.tiles.repeat_interleave(tile).tolist()
    assert rows.tiles.tolist() == [3, 3, 3, 0, 2, 2, 2, 2, 2, 2, 2, 4, 4]


def test_rows_of_no_document_get_nothing():
    tensors = inputs([(0, 10)])
    found = low_rank(*tensors, rows_of(4, 2, 6), [(0, 10)])
    assert torch.equal(found[12:], tensors[0][12:])


def kept_and_chunks(rows=3, chunk=3, window=7, ring=9):
    starts = torch.tensor([0, chunk, 3 * chunk, 7 * chunk], dtype=torch.int32)
    slots = torch.tensor([2, 0, 1, 3], dtype=torch.int32)
    keys, values = (torch.randn(5, ring, 2, 4, dtype=torch.float64) for _ in range(2))
    return Kept(keys, values), Chunks(slots, starts, chunk, window)


def test_a_row_sees_its_chunk_up_to_itself_and_the_window_before():
    kept, chunks = kept_and_chunks()
    q, k, v = random(12, 4, 4), random(12, 2, 4), random(12, 2, 4)
    found = chunk_attention(q, k, v, kept, chunks)
    for number, (slot, start) in enumerate(zip(chunks.slots.tolist(), chunks.starts.tolist(), strict=True)):
        seen = range(max(0, start + chunks.chunk - chunks.window), start)
        for i in range(3):
            own = slice(3 * number, 3 * number + i + 1)
            old = [torch.stack([x[slot, p % 9] for p in seen]) if seen else x[0, :0] for x in (kept.keys, kept.values)]
            keys, values = torch.cat([old[0], k[own]]), torch.cat([old[1], v[own]])
            for head in range(4):
                weights = F.softmax(keys[:, head // 2] @ q[3 * number + i, head] / 2, dim=0)
                torch.testing.assert_close(found[3 * number + i, head], weights @ values[:, head // 2])


def test_keeping_a_chunk_changes_nothing_that_it_sees():
    kept, chunks = kept_and_chunks()
    q, k, v = random(12, 4, 4), random(12, 2, 4), random(12, 2, 4)
    before = chunk_attention(q, k, v, kept, chunks)
    keep_(kept, k, v, places(chunks, 9, 3))
    assert torch.equal(chunk_attention(q, k, v, kept, chunks), before)


def test_a_kept_position_is_found_at_its_place_in_the_ring():
    kept, chunks = kept_and_chunks()
    k, v = random(12, 2, 4), random(12, 2, 4)
    keep_(kept, k, v, places(chunks, 9, 3))
    assert torch.equal(kept.keys[3, 21 % 9 + 1], k[10])
    assert torch.equal(kept.values[0, 3], v[3])


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adamw_by_slot_is_torchs(beta1):
    constants = AdamWConstants(lr=0.1, beta1=beta1, beta2=0.99, eps=1e-8, weight_decay=0.5)
    value, first, second = (
        torch.randn(4, 2, 3, dtype=torch.float64),
        torch.zeros(4, 2, 3).double(),
        torch.zeros(4, 2, 3),
    )
    tensor = SlotTensor(value.clone(), torch.zeros(4, 2, 3), first if beta1 else None, second.double())
    parameters = [torch.nn.Parameter(part.clone()) for part in value]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, betas=(beta1, 0.99), eps=1e-8, weight_decay=0.5)
    slots = torch.tensor([2, 0, 3], dtype=torch.int32)
    for step in range(1, 4):
        grad = torch.randn(4, 2, 3, dtype=torch.float64)
        corrected = corrections(torch.full((3,), float(step)), constants, torch.float64)
        adamw_(tensor, grad, Learning(slots, corrected, constants))
        for slot in (0, 2):
            parameters[slot].grad = grad[slot].clone()
        optimizer.step()
    for slot in (0, 2):
        torch.testing.assert_close(tensor.value[slot], parameters[slot].detach())
        torch.testing.assert_close(tensor.used[slot], parameters[slot].detach().float())
    assert torch.equal(tensor.value[1], value[1])


def test_a_learner_takes_the_step_in_the_backward_pass():
    columns = [(0, 4), (4, 10)]
    (base, x, a, b), rows = inputs(columns), rows_of(4, 2, 6)
    constants = AdamWConstants(lr=0.1, beta1=0.0, beta2=0.99, eps=1e-8, weight_decay=0.5)
    corrected = corrections(torch.ones(3), constants, torch.float64)
    learning = Learning(rows.learners, corrected, constants)
    states = [
        [SlotTensor(w.detach().clone(), w.detach().clone(), None, torch.zeros_like(w)) for _ in "ab"] for w in (a, b)
    ]
    found = low_rank(
        base, x, a, b, rows, columns, learner=Learner(states[0][0], states[1][0], learning), backend="triton"
    )
    (dx, *nothing) = torch.autograd.grad(found.sum(), (x, a, b), allow_unused=True)
    assert nothing == [None, None]
    expected = torch.autograd.grad(low_rank(base, x, a, b, rows, columns).sum(), (x, a, b))
    torch.testing.assert_close(dx, expected[0])
    for (mine, theirs), grad in zip(states, expected[1:], strict=True):
        adamw_(theirs, grad, learning)
        torch.testing.assert_close(mine.value[[3, 2]], theirs.value[[3, 2]])
        torch.testing.assert_close(mine.used[[3, 2]], mine.value[[3, 2]])


INTERPRETED = """
import torch
from golf_lightning.kernels import chunk_attention, low_rank, slot_adamw, triton_chunk_attention, triton_low_rank
torch.manual_seed(0)
rank = 6
constants = slot_adamw.AdamWConstants(lr=0.1, beta1=0.9, beta2=0.99, eps=1e-3, weight_decay=0.5)
for tile, span, flat, scaled in (
    (16, 16, [0, 16, 16, 32, 32, 40], True), (24, 24, [8, 24], False), (16, 64, [0, 40], True), (8, 32, [0, 8, 8, 9], 1)
):
    lengths = [5 * tile, tile, 6 * tile]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    slots, learners = (torch.tensor(x, dtype=torch.int32) for x in ([3, 0, 2], [3, 4, 2]))
    rows = low_rank.RowSlots(bounds, slots, learners, total=13 * tile, tile=tile, span=span, last=4)
    written, height = sum(flat[1::2]) - sum(flat[::2]), 13 * tile
    x, base, dout = (torch.randn(height, n) for n in (24, 40, 40))
    scale = torch.randn(40) if scaled else None
    a, b = torch.randn(5, rank * len(flat) // 2, 24), torch.randn(5, written, rank)
    h = low_rank.down(x, a, rows.tiles, 1.5)
    found = triton_low_rank.launch_forward(base, x, a, b, scale, rows, flat, 1.5)
    expected = low_rank.up(h, base, b, scale, rows.tiles, flat), h
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    given = (dout, x, found[1], a, b, scale, rows, flat, 1.5)
    expected = low_rank.backward(*given)
    found = triton_low_rank.launch_backward(*given, learner=None, want_dx=True)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(found[1:], expected[1:]):
        torch.testing.assert_close(mine[[3, 2]], theirs[[3, 2]], rtol=1e-4, atol=1e-4)
    for beta1 in (0.9, 0.0):
        corrected = slot_adamw.corrections(torch.tensor([1.0, 1.0, 5.0]), constants, torch.float32)
        learning = slot_adamw.Learning(rows.learners, corrected, constants)
        states = []
        for value in (a, b):
            first, second = torch.randn_like(value) if beta1 else None, torch.rand_like(value)
            states.append([slot_adamw.SlotTensor(*(t if t is None else t.clone()
                           for t in (value, value.bfloat16(), first, second))) for _ in range(2)])
        learner = low_rank.Learner(states[0][0], states[1][0], learning)
        dx, *none = triton_low_rank.launch_backward(*given, learner=learner, want_dx=False)
        assert dx is None and none == [None, None]
        for (mine, theirs), grad, before in zip(states, expected[1:], (a, b)):
            slot_adamw.adamw_(theirs, grad, learning)
            for name in ("value", "first", "second"):
                pair = [getattr(tensor, name) for tensor in (mine, theirs)]
                if pair[0] is not None:
                    torch.testing.assert_close(pair[0][:4], pair[1][:4], rtol=1e-3, atol=1e-4)
            assert torch.equal(mine.value[[0, 1]], before[[0, 1]])
            torch.testing.assert_close(mine.used[[2, 3]].float(), mine.value[[2, 3]], rtol=1e-2, atol=1e-4)
for rows, chunk, window, ring in ((16, 16, 48, 48), (48, 40, 100, 120)):
    kept = chunk_attention.Kept(torch.randn(4, ring, 2, 16), torch.randn(4, ring, 2, 16))
    starts = torch.tensor([0, chunk, 9 * chunk], dtype=torch.int32)
    chunks = chunk_attention.Chunks(torch.tensor([2, 0, 1], dtype=torch.int32), starts, chunk, window)
    q, k, v, dout = (torch.randn(3 * rows, n, 16) for n in (4, 2, 2, 4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    expected = chunk_attention.chunk_attention(*inputs, kept, chunks)
    gradients = torch.autograd.grad((expected * dout).sum(), inputs)
    given = (kept.keys, kept.values, chunks.slots, starts, chunk, window)
    q, k, v = (x.detach() for x in inputs)
    out, lse = triton_chunk_attention.launch(q, k, v, *given)
    torch.testing.assert_close(out, expected.detach(), rtol=1e-4, atol=1e-5)
    found = triton_chunk_attention.launch_backward(dout, q, k, v, out, lse, *given)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-4)
"""


@needs_triton
def test_triton_kernels_compute_the_same_in_the_interpreter():
    interpret(INTERPRETED)
