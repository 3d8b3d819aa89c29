"""The same loss curve over 50 steps from the same global batches, on 1, 2 and 4 gloo processes."""

from typing import Any

import pytest
import torch
from curve_work import MICRO_BATCHES, STEPS, default, exact, on_four, on_two
from ranks import run_on_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """One process that accumulates, without a process group."""
    return {"exact": exact(0, 1), "default": default(0, 1)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(on_two, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(on_four, 4, tmp_path_factory.mktemp("four"))


def in_order(ranks: list[dict[str, Any]], formats: str) -> torch.Tensor:
    """The losses of all micro-batches, however many ranks shared them: ``[STEPS * MICRO_BATCHES]``."""
    losses = torch.tensor([rank[formats]["losses"] for rank in ranks], dtype=torch.float64)
    assert losses.numel() == STEPS * MICRO_BATCHES
    return losses.T.flatten()


def test_the_model_learns(alone: dict[str, Any]) -> None:
    losses = in_order([alone], "exact")
    assert losses[-MICRO_BATCHES:].mean() < 0.5 * losses[:MICRO_BATCHES].mean()


def test_two_ranks_repeat_one_to_1e_6(alone: dict[str, Any], two: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(in_order(two, "exact"), in_order([alone], "exact"), rtol=0, atol=1e-6)


def test_four_ranks_repeat_one_to_1e_6(alone: dict[str, Any], four: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(in_order(four, "exact"), in_order([alone], "exact"), rtol=0, atol=1e-6)


def test_two_ranks_repeat_one_in_the_formats_of_a_real_run(alone: dict[str, Any], two: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(in_order(two, "default"), in_order([alone], "default"), rtol=2e-3, atol=0)


@pytest.mark.parametrize("formats", ["exact", "default"])
def test_parameters_end_bit_equal_on_two_ranks(two: list[dict[str, Any]], formats: str) -> None:
    torch.testing.assert_close(two[0][formats]["weights"], two[1][formats]["weights"], rtol=0, atol=0)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_parameters_end_bit_equal_on_four_ranks(four: list[dict[str, Any]], rank: int) -> None:
    torch.testing.assert_close(four[0]["exact"]["weights"], four[rank]["exact"]["weights"], rtol=0, atol=0)
