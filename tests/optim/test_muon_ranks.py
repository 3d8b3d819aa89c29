"""The optimizer on two real gloo processes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_work import STEPS, continue_from, everything
from ranks import EXACT, SHAPES, UNCLIPPED, gradients, parameters, run_on_ranks, set_gradients
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.muon import MuonAdamW

WORLD = 2


def train_alone(optimizer: MuonAdamW, named: dict[str, nn.Parameter], first: int, last: int) -> None:
    """One process that sees the gradients of both ranks at once."""
    for step in range(first, last):
        by_rank = [gradients(step, rank) for rank in range(WORLD)]
        set_gradients(named, {name: sum(values[name] for values in by_rank) / WORLD for name in SHAPES})
        optimizer.step()


def assert_close(actual: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for name in SHAPES:
        torch.testing.assert_close(
            actual[name], expected[name].detach(), rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(everything, WORLD, tmp_path_factory.mktemp("ranks"))


def test_sharded_equals_unsharded(ranks: list[dict[str, Any]]) -> None:
    named = parameters()
    optimizer = MuonAdamW(named.items(), EXACT)
    train_alone(optimizer, named, 0, STEPS)
    assert_close(ranks[0]["exact"]["half way"], named, 1e-6)


def test_norm_is_of_the_averaged_gradient(ranks: list[dict[str, Any]]) -> None:
    step = STEPS - 1
    average = {name: (gradients(step, 0)[name] + gradients(step, 1)[name]).double() / 2 for name in SHAPES}
    expected = torch.stack([value.square().sum() for value in average.values()]).sum().sqrt().float()
    for rank in range(WORLD):
        torch.testing.assert_close(ranks[rank]["exact"]["norm"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("part, key", [("exact", "end"), ("bfloat16", "weights")])
def test_parameters_are_bit_equal_across_ranks(ranks: list[dict[str, Any]], part: str, key: str) -> None:
    assert_close(ranks[0][part][key], ranks[1][part][key], 0)


def test_momentum_is_sharded(ranks: list[dict[str, Any]]) -> None:
    # Up and down share a pool of 6 matrices, so rank 0 has 3 of up's 5, and rank 1 the other 2 and down's.
    assert ranks[0]["exact"]["momentum rows"] == {"qo": 2, "kv": 2, "up": 3, "down": 0}
    assert ranks[1]["exact"]["momentum rows"] == {"qo": 2, "kv": 1, "up": 2, "down": 1}


def test_saved_state_is_full(ranks: list[dict[str, Any]]) -> None:
    names = [name for group in ranks[0]["exact"]["state"]["param_groups"] for name in group["param_names"]]
    state = ranks[0]["exact"]["state"]["state"]
    shapes = {name: tuple((state[i].get("momentum", state[i].get("exp_avg"))).shape) for i, name in enumerate(names)}
    assert shapes == SHAPES


def test_saving_holds_one_pool_on_one_rank_and_shards_elsewhere(ranks: list[dict[str, Any]]) -> None:
    # Pools of 6, 4 and 4 matrices after padding, half of each on a rank, 4 bytes a value.
    shards = [3 * 24 * 12 * 4, 2 * 12 * 12 * 4, 2 * 6 * 12 * 4]
    assert ranks[1]["exact"]["held while saving"] == shards
    assert ranks[0]["exact"]["held while saving"] == [3 * shard for shard in shards]


@pytest.mark.parametrize("rank, when", [(1, "other rank refuses"), (0, "stale refused"), (1, "stale refused")])
def test_a_part_of_the_state_is_never_saved_for_the_whole(ranks: list[dict[str, Any]], rank: int, when: str) -> None:
    assert ranks[rank]["exact"][when]


def test_resume_on_two_ranks_is_bit_identical(ranks: list[dict[str, Any]]) -> None:
    assert_close(ranks[0]["exact"]["resumed end"], ranks[0]["exact"]["end"], 0)


def test_another_rule_for_banks_is_averaged_sharded_and_saved_like_muon(ranks: list[dict[str, Any]]) -> None:
    named = parameters()
    lr, decay = UNCLIPPED.muon_lr, UNCLIPPED.muon_wd
    banks = [named[name] for name in ("qo", "kv", "up", "down")]
    torchs = torch.optim.AdamW(banks, lr, (UNCLIPPED.beta1, UNCLIPPED.beta2), UNCLIPPED.eps, decay)
    for step in range(2 * STEPS):
        first, second = (gradients(step, rank) for rank in range(WORLD))
        set_gradients(named, {name: (first[name] + second[name]) / WORLD for name in SHAPES})
        torchs.step()
    for name in ("qo", "kv", "up", "down"):
        torch.testing.assert_close(ranks[0]["another_rule"]["end"][name], named[name].detach(), rtol=0, atol=1e-5)
    assert_close(ranks[0]["another_rule"]["resumed end"], ranks[0]["another_rule"]["end"], 0)


def test_saved_on_two_ranks_goes_on_alone(ranks: list[dict[str, Any]]) -> None:
    named = {name: nn.Parameter(value.clone()) for name, value in ranks[0]["exact"]["half way"].items()}
    optimizer = MuonAdamW(named.items(), EXACT)
    optimizer.load_state_dict(ranks[0]["exact"]["state"])
    train_alone(optimizer, named, STEPS, 2 * STEPS)
    assert_close(ranks[0]["exact"]["end"], named, 1e-6)


def test_saved_alone_goes_on_on_two_ranks(tmp_path: Path) -> None:
    named = parameters()
    optimizer = MuonAdamW(named.items(), EXACT)
    train_alone(optimizer, named, 0, STEPS)
    weights = {name: parameter.detach() for name, parameter in named.items()}
    torch.save({"weights": weights, "state": optimizer.state_dict()}, tmp_path / "saved.pt")
    train_alone(optimizer, named, STEPS, 2 * STEPS)
    first, second = run_on_ranks(partial(continue_from, path=str(tmp_path / "saved.pt")), WORLD, tmp_path)
    assert_close(first, named, 1e-6)
    assert_close(first, second, 0)


def test_bytes_on_the_wire(ranks: list[dict[str, Any]]) -> None:
    # Banks padded to two ranks and the embedding: 2 bytes a value; the packed buffer: vectors and 34 numbers.
    banks = [6 * 24 * 12 * 2, 4 * 12 * 12 * 2, 4 * 6 * 12 * 2]
    packed = (2 * 2 * 12 + 2 * 3 + 1 + 34) * 4
    sent = ranks[0]["bfloat16"]["sent"]
    assert {kind: sorted(sizes) for kind, sizes in sent.items()} == {
        "reduce_scatter": sorted(banks),
        "all_reduce": sorted([17 * 12 * 2, packed]),
        "all_gather": sorted(banks),
    }
    # In a ring of two, half of each scatter or gather leaves a rank, and the whole of each reduction.
    claimed = ranks[0]["bfloat16"]["claimed"]
    assert claimed == {
        "reduce_scatter": sum(banks) // 2,
        "all_reduce": 17 * 12 * 2 + packed,
        "all_gather": sum(banks) // 2,
    }


def test_bytes_on_the_wire_at_full_size_are_those_of_the_docstring() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        with torch.device("meta"):
            optimizer = MuonAdamW(GPT(GPTConfig()).named_parameters(), OptimizerConfig())
        optimizer.join(dist.group.WORLD)
        claimed = {kind: round(size / 1e6, 1) for kind, size in optimizer.wire_bytes().items()}
    finally:
        dist.destroy_process_group()
    assert claimed == {"reduce_scatter": 60.6, "all_reduce": 14.9, "all_gather": 60.6}
    stated = MuonAdamW.__doc__ or ""
    assert "60.6 MB + 60.6 MB" in stated and "14.7 MB" in stated and "0.2 MB packed" in stated


def test_largest_banks_travel_first(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["bfloat16"]["sent"]["reduce_scatter"][0] == 6 * 24 * 12 * 2


def test_all_ranks_agree_on_clock_and_signal(ranks: list[dict[str, Any]]) -> None:
    for rank in range(WORLD):
        assert ranks[rank]["exchange"] == [(10.0, 0), (10.0, 0), (20.0, 0), (21.0, 15), (22.0, 15)]


@pytest.mark.parametrize(
    "what, beginning", [("text", "The data of ranks [1]"), ("parameters", "The parameters of ranks [1]")]
)
def test_differing_ranks_are_refused_everywhere(ranks: list[dict[str, Any]], what: str, beginning: str) -> None:
    for rank in range(WORLD):
        assert ranks[rank]["refusals"][what].startswith(beginning)
