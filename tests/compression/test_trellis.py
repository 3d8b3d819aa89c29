import itertools

import numpy as np
import pytest
import torch
from without_gpu import interpret, needs_triton

from golf_lightning.compression.search import FIRST, SUBSET, search_levels, subset_range
from golf_lightning.compression.tables import Table
from golf_lightning.compression.trellis import NEXT_STATE, RESTART, STATES, low_bits, on_trellis


def levels(shape: tuple[int, int, int], spread: float = 6.0, largest: int = 127, seed: int = 0) -> np.ndarray:
    """Levels of a normal source on the trellis."""
    target = spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    columns = [search_levels(target[:, :, column], largest) for column in range(shape[2])]
    return torch.stack(columns, dim=2).to(torch.int8).numpy()


def test_the_machine_is_ungerboecks_code():
    """Every path satisfies the parity checks 13 (bit 0) and 04 (bit 1): z0[t] = z0[t-1] + z0[t-3] + z1[t-2]."""
    generator = np.random.default_rng(0)
    drive = generator.integers(0, 2, (1, 100, 1), dtype=np.uint8)
    low = low_bits(drive)[0, :, 0].astype(int)
    high = drive[0, :, 0].astype(int)
    for t in range(3, 100):
        assert low[t] == (low[t - 1] + low[t - 3] + high[t - 2]) % 2


def test_the_search_walks_the_machine_backwards():
    for state, branch in itertools.product(range(STATES), (0, 1)):
        before, subset = FIRST[state] + 4 * branch, SUBSET[state] ^ (2 * branch)
        assert NEXT_STATE[2 * before + (subset >> 1)] == state
        assert before & 1 == subset & 1


@pytest.mark.parametrize("seed", range(5))
def test_no_other_path_is_nearer(seed):
    length = 7
    target = 3 * torch.randn(1, length, generator=torch.Generator().manual_seed(seed))
    found = (search_levels(target, 9) - target).square().sum()
    best = np.inf
    for drive in itertools.product((0, 1), repeat=length):
        bits = np.array(drive, np.uint8).reshape(1, length, 1)
        subsets = 2 * bits + low_bits(bits)
        cost = 0.0
        for t in range(length):
            low, high = subset_range(int(subsets[0, t, 0]), 9)
            allowed = np.arange(low, high + 1, 4)
            cost += float(np.min((allowed - float(target[0, t])) ** 2))
        best = min(best, cost)
    assert float(found) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 5, RESTART - 1, RESTART, RESTART + 1, 3 * RESTART])
@pytest.mark.parametrize("largest", [7, 31, 127])
def test_found_levels_follow_the_trellis_within_bounds(rows, largest):
    found = levels((2, rows, 3), spread=20.0, largest=largest)
    assert np.abs(found.astype(int)).max() <= largest
    assert on_trellis(found)


def test_one_changed_level_leaves_the_trellis():
    found = levels((1, 64, 4))
    found[0, 10, 2] ^= 1
    assert not on_trellis(found)


def test_zeros_follow_the_trellis():
    assert not search_levels(torch.zeros(2, 300), 127).any()
    assert on_trellis(np.zeros((2, 300, 4), np.int8))


def test_the_error_is_a_fifth_less_than_that_of_a_grid_of_equal_rate():
    """At high rates a grid of step 2 has 4/12; the trellis pays for a step of 2 as well."""
    target = 20 * torch.randn(40, 512, generator=torch.Generator().manual_seed(1))
    error = float((search_levels(target, 127) - target).square().mean())
    assert error < 0.8 * 4 / 12
    counts = torch.bincount(search_levels(target, 127).long().flatten() + 127).double()
    joint = counts[counts > 0] / counts.sum()
    grid = torch.bincount((target / 2).round().long().flatten() + 127).double()
    plain = grid[grid > 0] / grid.sum()
    # One of two quantizers is known at every row, which is worth one bit.
    assert float(-(joint * joint.log2()).sum()) - 1 == pytest.approx(float(-(plain * plain.log2()).sum()), abs=0.02)


@pytest.mark.parametrize("subset", range(4))
@pytest.mark.parametrize("counts", [[5], [3, 1, 2], [1, 2, 3, 4]])
def test_models_of_a_remainder_hold_its_integers_alone(subset, counts):
    table = Table(np.array(counts), start=subset & 1, stride=2)
    model = table.remainder(subset)
    largest = (subset & 1) + 2 * (len(counts) - 1)
    wanted = [n for n in range(-largest, largest + 1) if n % 4 == subset]
    assert [model.first + model.stride * i for i in range(model.count)] == wanted


INTERPRETED = """
import torch
from golf_lightning.compression.search import search_on_cpu
from golf_lightning.compression.triton_search import launch_search
target = 6 * torch.randn(35, 20, generator=torch.Generator().manual_seed(2))
for largest in (127, 31, 7):
    assert torch.equal(launch_search(target, largest), search_on_cpu(target, largest)), largest
"""


@needs_triton
def test_the_kernel_finds_the_same_levels_in_the_interpreter():
    interpret(INTERPRETED)
