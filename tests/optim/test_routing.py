import dataclasses

import pytest
import torch
from torch import nn

from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.muon import MuonAdamW
from golf_lightning.optim.routing import ROUTES, route, routed


def one(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def test_banks_of_the_model_are_the_banks_of_the_table() -> None:
    assert {name for name, group in ROUTES.items() if group == "banks"} == set(GPTConfig().bank_shapes)


def test_prefix_does_not_matter() -> None:
    assert route("model.gpt.down") == "banks"


def test_unknown_parameter_is_named() -> None:
    with pytest.raises(GolfError, match=r"model\.new_gate"):
        route("model.new_gate")


def test_every_parameter_goes_to_exactly_one_group() -> None:
    named = [(f"model.{name}", one(1, 2, 2)) for name in ROUTES]
    groups = routed(named)
    assert sorted(name for group in groups.values() for name, _ in group) == sorted(name for name, _ in named)


@pytest.mark.parametrize(
    "named, message",
    [
        ([("a.qo", bank := one(1, 2, 2)), ("b.qo", bank)], "also given as"),
        ([("qo", one(2, 2))], "2 dimensions"),
        ([("mix", nn.Parameter(torch.zeros(2), requires_grad=False))], "takes no gradient"),
        ([("mix", nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))], "32-true"),
        ([], "no parameters"),
    ],
)
def test_parameters_that_cannot_be_optimized_are_refused(named: list, message: str) -> None:
    with pytest.raises(GolfError, match=message):
        routed(named)


def test_groups_get_their_rates() -> None:
    config = OptimizerConfig(muon_lr=1.0, muon_wd=2.0, embedding_lr=3.0, embedding_wd=4.0, vector_lr=5.0, vector_wd=6.0)
    optimizer = MuonAdamW([("qo", one(1, 2, 2)), ("embedding", one(3, 2)), ("mix", one(2))], config)
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert rates == {"banks": (1.0, 2.0), "embedding": (3.0, 4.0), "vectors": (5.0, 6.0)}


@pytest.mark.parametrize(
    "field, value",
    [
        ("muon_lr", -0.1),
        ("vector_wd", float("nan")),
        ("clip_norm", float("inf")),
        ("momentum_warmup_steps", -1),
        ("momentum", 1.0),
        ("beta2", 1.5),
        ("warmdown_fraction", 1.1),
        ("min_lr", -0.1),
        ("eps", 0.0),
        ("coefficients", "cubic"),
        ("communication_dtype", "float16"),
        ("newton_schulz_dtype", "int8"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(GolfError, match=field):
        OptimizerConfig(**{field: value})  # type: ignore[arg-type]


def test_every_field_is_explained() -> None:
    for field in dataclasses.fields(OptimizerConfig):
        assert f"\n        {field.name}: " in (OptimizerConfig.__doc__ or "")
