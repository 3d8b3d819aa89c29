from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from golf_lightning.__main__ import named_callbacks
from golf_lightning.submission.options import _OptionsOnly, without, without_defaults

CONFIGS = Path(__file__).parents[2] / "configs"


def resolved(values: dict[str, Any]) -> dict[str, Any]:
    """All options of a run, defaults too."""
    cli = _OptionsOnly(named_callbacks(), {"subcommand": "fit", "fit": values})
    return yaml.safe_load(cli.parser_of_subcommand().dump(cli.config.fit, skip_none=False))


@pytest.mark.parametrize("recipe", ["golf", "demo", "pr1536"])
def test_a_run_has_the_same_options_without_its_defaults(recipe: str) -> None:
    every = resolved(yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text()))
    short = without_defaults(every)
    assert resolved(short) == every
    assert len(str(short)) < len(str(every)) / 4


def test_defaults_spelt_out_change_nothing() -> None:
    assert without_defaults({"clock": {"budget_s": 600.0}, "data": {"folder": "x"}}) == {"data": {"folder": "x"}}


def test_options_of_another_program_all_stay() -> None:
    values = {"model": {"mine": 3}, "clock": {"budget_s": 600.0}}
    assert without_defaults(values) == values


def test_the_random_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    without_defaults({"seed_everything": 7})
    assert torch.equal(torch.get_rng_state(), before)


def test_options_are_dropped_by_their_whole_name() -> None:
    assert without({"a": {"b": 1, "c": 2}, "b": 3}, ["a.b"]) == {"a": {"c": 2}, "b": 3}
