"""The benchmark over ranks: its floors are what they claim, and a rank among eight can be measured alone."""

import pytest
import rank_speed
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from golf_lightning.optim.newton_schulz import COEFFICIENTS, orthogonalize


def test_the_products_are_those_of_newton_schulz() -> None:
    args = rank_speed.parse(["--size", "tiny"])
    with FlopCounterMode(display=False) as counter:
        for shape in rank_speed.SIZES["tiny"].bank_shapes.values():
            orthogonalize(torch.randn(shape), COEFFICIENTS["quintic"], torch.float32)
    assert rank_speed.newton_schulz_flops(args, 1) == counter.get_total_flops()
    assert rank_speed.newton_schulz_flops(args, 4) == counter.get_total_flops() / 4


def test_one_rank_of_eight_is_measured_with_its_share() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        args = rank_speed.parse(["--size", "tiny", "--repeat", "1", "--pretend", "8"])
        result = rank_speed.optimizer_part(args, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
    assert result["world_size"] == 8
    assert result["ms_step"] > 0
    assert result["wire_bytes"]["reduce_scatter"] == result["wire_bytes"]["all_gather"] > 0
    assert result["floor_ms_memory"] == pytest.approx(rank_speed.memory_bytes(args, 8) / 4.3e9)
