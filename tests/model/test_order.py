"""The order of layers, and skips that keep what they have learned when recurrence starts."""

import pytest
from small import small_config

from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.order import layer_plan, skip_slots


def test_plans_are_those_of_the_recipe() -> None:
    plain, recurrent = layer_plan(GPTConfig(), False), layer_plan(GPTConfig(), True)
    assert (plain.encoder, plain.decoder) == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9, 10))
    assert plain.slots == (0, 4, 5, 6, 7, None)
    assert recurrent.encoder == (0, 1, 2, 3, 4, 5, 3, 4)
    assert recurrent.decoder == (5, 3, 4, 5, 6, 7, 8, 9, 10)
    assert recurrent.slots == (0, 1, 2, 3, 4, 5, 6, 7, None)
    assert recurrent.depth == 17
    assert skip_slots(GPTConfig()) == 8


def pairs(config: GPTConfig, recurrent: bool) -> dict[int, tuple[int, int]]:
    plan = layer_plan(config, recurrent)
    joined = zip(reversed(plan.encoder), plan.decoder, plan.slots, strict=False)
    return {slot: (encoder, decoder) for encoder, decoder, slot in joined if slot is not None}


@pytest.mark.parametrize("config", [GPTConfig(), small_config()], ids=["full", "small"])
def test_skips_join_the_same_layers_before_and_after_the_switch(config: GPTConfig) -> None:
    before, after = pairs(config, False), pairs(config, True)
    assert all(after[slot] == pair for slot, pair in before.items())


@pytest.mark.parametrize("layers", range(2, 9))
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_every_shape_gets_a_plan_without_sharing_slots(layers: int, passes: int) -> None:
    for first in range(layers):
        for last in range(first, layers):
            config = small_config(layers=layers, loop_first=first, loop_last=last, loop_passes=passes, lanes="none")
            for recurrent in (False, True):
                plan = layer_plan(config, recurrent)
                used = [slot for slot in plan.slots if slot is not None]
                assert len(set(used)) == len(used) == len(plan.encoder)
                assert all(0 <= slot < skip_slots(config) for slot in used)
                assert set(plan.encoder) | set(plan.decoder) == set(range(layers))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads \\* head_dim is 24 but width is 32"),
        ({"heads": 4, "kv_heads": 3}, "do not divide"),
        ({"rope_dims": 3}, "must be even"),
        ({"rope_dims": 10}, "must be even"),
        ({"loop_last": 7}, "out of range"),
        ({"loop_first": 4, "loop_last": 3}, "out of range"),
        ({"loop_passes": 0}, "loop_passes is 0"),
        ({"lanes_start": 3}, "choose 4..6"),
        ({"lanes": "both"}, "none, isolated or crossed"),
        ({"layers": 0}, "at least 1"),
    ],
    ids=str,
)
def test_impossible_shapes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(GolfError, match=message):
        small_config(**changes)


def test_config_survives_json() -> None:
    config = small_config(lanes="isolated")
    assert GPTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(GolfError, match="Unknown model fields"):
        GPTConfig.from_dict(config.to_dict() | {"colour": 1})
