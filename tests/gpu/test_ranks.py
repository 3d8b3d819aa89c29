"""The optimizer on two GPUs through NCCL."""

from typing import Any

import pytest
import torch
from gpu_rank_work import STEPS, on_two_gpus
from ranks import EXACT, SHAPES, gradients, parameters, set_gradients

from golf_lightning.optim.muon import MuonAdamW

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_two_gpus(tmp_path_factory.mktemp("gpus"))


@pytest.mark.parametrize(("part", "steps"), [("half way", STEPS), ("end", 2 * STEPS)])
def test_two_gpus_do_what_one_cpu_does(two: list[dict[str, Any]], part: str, steps: int) -> None:
    named = parameters()
    optimizer = MuonAdamW(named.items(), EXACT)
    for step in range(steps):
        by_rank = [gradients(step, rank) for rank in range(2)]
        set_gradients(named, {name: (by_rank[0][name] + by_rank[1][name]) / 2 for name in SHAPES})
        optimizer.step()
    for name, parameter in named.items():
        torch.testing.assert_close(
            two[0]["exact"][part][name], parameter.detach(), rtol=0, atol=4e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("formats", ["exact", "default"])
def test_parameters_are_bit_equal_on_both(two: list[dict[str, Any]], formats: str) -> None:
    torch.testing.assert_close(two[0][formats]["end"], two[1][formats]["end"], rtol=0, atol=0)


def test_resume_is_bit_identical(two: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(two[0]["exact"]["resumed"], two[0]["exact"]["end"], rtol=0, atol=0)


def test_both_agree_on_clock_and_signal(two: list[dict[str, Any]]) -> None:
    assert two[0]["default"]["agreed"] == two[1]["default"]["agreed"] == [(1.0, 0), (2.0, 0), (3.0, 15), (4.0, 0)]


def test_waiting_for_long_work_of_the_other_is_no_hang(two: list[dict[str, Any]]) -> None:
    """Rank 1 reads a result from its GPU that NCCL delivers long after the watch's patience."""
    assert two[0]["long work"] == two[1]["long work"] == [1.0, 2.0]
