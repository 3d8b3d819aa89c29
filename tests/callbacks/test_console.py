"""What is told of a training that ends between two lines."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import golf, make_data, write_recipe

from golf_lightning.module import GolfModule

TOKENS = 128


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("prepared"))


def interrupted_fit(data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, at: int, signals: int = 1) -> Path:
    """The folder of a run with a line every 6 steps that gets Ctrl-C with its micro-batch ``at``."""
    original, batches = GolfModule.training_step, []

    def step(module: GolfModule, *arguments: Any) -> torch.Tensor:
        batches.append(None)
        if len(batches) == at:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)
        return original(module, *arguments)

    monkeypatch.setattr(GolfModule, "training_step", step)
    recipe = write_recipe(folder, data, trainer={"max_steps": 30}, console={"every_steps": 6})
    assert golf("fit", "--config", recipe, "--trainer.accumulate_grad_batches", "2") == 130
    return folder / "runs" / "small"


def trained(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())["train"]


@pytest.mark.parametrize("at", [3, 16, 17, 19, 21], ids="batch {}".format)
def test_an_interrupted_run_tells_all_its_steps_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    run = interrupted_fit(data, tmp_path, monkeypatch, at=at)
    steps = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert (trained(run)["steps"], trained(run)["tokens"]) == (steps, steps * 2 * TOKENS)
    (curve,) = run.glob("metrics/version_*/metrics.csv")
    with curve.open() as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert logged == sorted({*range(6, steps, 6), steps})


def test_a_run_that_stops_at_once_tells_the_steps_it_has_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted_fit(data, tmp_path, monkeypatch, at=19, signals=2)
    assert (trained(run)["steps"], trained(run)["tokens"]) == (9, 9 * 2 * TOKENS)
