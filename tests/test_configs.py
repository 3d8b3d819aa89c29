"""Every shipped recipe is parsed and instantiated, alone and under every overlay; so is every command in the README."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typing_extensions import override

from golf_lightning.__main__ import main, named_callbacks
from golf_lightning.cli import GolfCLI
from golf_lightning.tools import TOOLS

ROOT = Path(__file__).parent.parent
RECIPES = ("demo", "golf", "pr1536")
OVERLAYS = ("one_gpu", "eight_gpus", "quick")
ON_A_CPU = ("--trainer.accelerator", "cpu", "--trainer.devices", "1")
COMMANDS = [
    line.split("#")[0].strip()
    for line in re.findall(
        r"^(?: {4}python|srun python|torchrun .*) -m golf_lightning (.*)$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
]


class Instantiated(GolfCLI):
    """Everything but the run itself."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


def instantiate(*arguments: str) -> Any:
    with torch.device("meta"):
        return Instantiated(named_callbacks(), [*arguments, *ON_A_CPU])


def config(name: str) -> str:
    return str(ROOT / "configs" / f"{name}.yaml")


def test_the_shipped_configs_are_the_tested_ones() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {*RECIPES, *OVERLAYS}


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_instantiate_under_every_overlay(recipe: str, overlay: str | None) -> None:
    files = [recipe] if overlay is None else [recipe, overlay]
    cli = instantiate("fit", *(argument for name in files for argument in ("--config", config(name))))
    assert cli.model.model.config.vocab_size == (1024 if recipe == "demo" else 8192)
    assert len(cli.trainer.callbacks) == len(named_callbacks())


def test_one_gpu_sees_the_batch_of_eight() -> None:
    tokens = []
    for overlay in ("one_gpu", "eight_gpus"):
        trainer = yaml.safe_load(Path(config(overlay)).read_text())["trainer"]
        tokens.append(trainer["devices"] * trainer["accumulate_grad_batches"] * 98_304)
    assert tokens == [786_432, 786_432]


def test_the_record_and_its_successor_differ_where_the_recipe_says() -> None:
    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}".strip(".")).items()}

    configs = []
    for recipe in ("pr1536", "golf"):
        cli = instantiate("fit", "--config", config(recipe))
        configs.append(flat(yaml.safe_load(cli.parser_of_subcommand().dump(cli.config.fit))))
    old, new = configs
    assert {key: (old[key], new.get(key)) for key in old if old[key] != new.get(key)} == {
        "run.name": ("pr1536", "golf"),
        "clock.reserve_s": (12.0, 13.0),
        "ema.decay": (0.997, 0.9965),
        "model.gpt.lanes": ("isolated", "crossed"),
        "model.gpt.lanes_start": (7, 8),
        "model.optimizer.embedding_wd": (0.095, 0.085),
        "model.optimizer.warmdown_fraction": (0.667, 0.72),
        "model.export.rate": ("fixed", "budget"),
        "model.export.quantization.trellis": (False, True),
        "model.export.quantization.vector_bits": (10, 6),
        "model.ttt.mode": ("exact", "cached"),
        "model.ttt.chunk": (64, 16),
        "model.ttt.adapters.alpha": (96, None),
    }


def test_the_defaults_are_the_default_recipe() -> None:
    """A file or a notebook that names nothing must not train something else than golf.yaml."""
    cli = instantiate("fit", "--config", config("golf"))
    bare = instantiate("fit", "--data.folder", "data/fineweb", "--run.name", "golf")
    text = [c.parser_of_subcommand().dump(c.config.fit).replace(config("golf"), "") for c in (cli, bare)]
    left, right = (yaml.safe_load(dump) for dump in text)
    left.pop("config", None)
    right.pop("config", None)
    assert left == right


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_are_understood(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command)
    if arguments[0] in TOOLS:
        with pytest.raises(SystemExit) as end:  # the options are checked before --help answers
            main([*arguments, "--help"])
        assert end.value.code == 0
    elif "--help" in arguments:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    else:
        instantiate(*arguments)


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("option", ["--clock.budget_s", "--model.ttt.lr", "--data.train_tokens", "--run.name"])
def test_help_explains_options(option: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    explained = text[text.index(f"  {option}") :].split("(")[0].split(maxsplit=2)[2]
    assert len(explained.split()) > 3
