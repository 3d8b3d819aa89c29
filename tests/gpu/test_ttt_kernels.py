"""The kernels of test-time training on a GPU: bfloat16 in, compared with the formulas in float64."""

import pytest
import torch

from golf_lightning.kernels import joining
from golf_lightning.kernels.low_rank import Learner, RowSlots, backward, down, low_rank, up
from golf_lightning.kernels.slot_adamw import AdamWConstants, Aside, Learning, SlotTensor, adamw_, corrections

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9,
    reason="needs a GPU of compute capability 9",
)

CONSTANTS = AdamWConstants(lr=0.01, beta1=0.0, beta2=0.99, eps=1e-3, weight_decay=0.5)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape):
    return torch.randn(*shape, device="cuda").bfloat16()


def close(found, expected, tolerance=0.01):
    """Within so much of the largest value expected."""
    expected = expected.double().cpu()
    assert (found.double().cpu() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_sums_and_norms(terms, weighted):
    inputs, weights = [random(1030, 512) for _ in range(terms)], random(terms, 512) if weighted else None
    inputs = [x.requires_grad_() for x in inputs]
    u, *read = joining.join(inputs, weights, scale=0.7, readers=3)
    assert len(read) == 3
    wide = [x.detach().double().cpu() for x in inputs], None if weights is None else weights.double().cpu()
    for found, expected in zip((u, read[2]), joining.forward(*wide, 0.7, True), strict=True):
        close(found.detach(), expected)
    given = [random(1030, 512) for _ in range(4)]
    du, *dn = (x.double().cpu() for x in given)
    expected = joining.backward(du, dn, u.detach().double().cpu(), wide[1], 0.7, [True] * terms)
    found = torch.autograd.grad([u, *read], inputs, given)
    for mine, theirs in zip(found, expected if weighted else expected * terms, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize(("tile", "span", "aside"), [(16, 16, False), (24, 24, True), (32, 128, True)])
@pytest.mark.parametrize("columns", [[(0, 512), (512, 768), (768, 1024)], [(512, 768)]], ids=str)
def test_low_rank_products_gradients_and_steps(tile, span, columns, aside):
    rank, lengths = 96, [3 * tile, 5 * tile, 7 * tile, 2 * tile]
    slots = torch.tensor([5, 0, 3, 1], device="cuda", dtype=torch.int32)
    bounds = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    learners = torch.tensor([5, 6, 3, 1], device="cuda", dtype=torch.int32)
    layout = {"total": 18 * tile, "tile": tile, "span": span, "last": 6}
    rows = RowSlots(bounds, slots, learners, **layout)
    height, written = 18 * tile, sum(end - begin for begin, end in columns)
    base, x, dout, scale = random(height, 1024), random(height, 512), random(height, 1024), random(1024)
    a, b = random(7, rank * len(columns), 512) / 16, random(7, written, rank) / 8
    corrected = corrections(torch.tensor([1.0, 1.0, 2.0, 9.0], device="cuda"), CONSTANTS, torch.float32)
    learning = Learning(learners, corrected, CONSTANTS, Aside() if aside else None)
    # Far from 0, where the step would magnify what bfloat16 rounds off a gradient.
    states = [SlotTensor(w.float(), w.clone(), None, torch.rand_like(w.float()) + 0.5) for w in (a, b)]
    copies = [
        SlotTensor(w.double().cpu(), w.double().cpu(), None, state.second.double().cpu())
        for w, state in zip((a, b), states, strict=True)
    ]
    x.requires_grad_()
    leaves = [state.used.detach().requires_grad_() for state in states]
    found = low_rank(
        base, x, *leaves, rows, columns, alpha=1.5, scale_O=scale, learner=Learner(*states, learning), backend="triton"
    )
    wide = [t.detach().double().cpu() for t in (base, x, dout, a, b, scale)]
    slow = RowSlots(*(t.cpu() for t in (bounds, slots, learners)), **layout)
    flat = [bound for pair in columns for bound in pair]
    h = down(wide[1], wide[3], slow.tiles, 1.5)
    close(found, up(h, wide[0], wide[4], wide[5], slow.tiles, flat))
    (dx,) = torch.autograd.grad(found, x, dout)
    if learning.aside is not None:
        learning.aside.join()
    expected = backward(wide[2], wide[1], h, wide[3], wide[4], wide[5], slow, flat, 1.5)
    close(dx, expected[0])
    step = Learning(slow.learners, tuple(part.double().cpu() for part in corrected), CONSTANTS)
    for mine, theirs, grad in zip(states, copies, expected[1:], strict=True):
        before = theirs.value.clone()
        adamw_(theirs, grad, step)
        moved, wanted = (t.value.double().cpu()[:6] - before[:6] for t in (mine, theirs))
        close(moved, wanted, 0.1)
        close(mine.second.cpu()[:6], theirs.second[:6], 0.05)
        assert torch.equal(mine.used[:6], mine.value[:6].bfloat16())
