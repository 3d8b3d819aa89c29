"""When training stops and when recurrence starts."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_run import golf, make_data, write_recipe

from callbacks.wall_clock import WallClock
from golf_lightning.module import GolfModule
from golf_lightning.optim.clock import TrainingClock

NO_SCORING = ("--gptq.at_train_end", "false", "--ttt.enabled", "false")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("prepared"))


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "small" / "result.json").read_text())


@pytest.mark.parametrize(("start", "step"), [(0.0, 0), (0.5, 5), (1.0, None)])
def test_recurrence_starts_at_its_fraction_of_the_steps(
    data: Path, tmp_path: Path, start: float, step: int | None
) -> None:
    recipe = write_recipe(tmp_path, data, trainer={"max_steps": 10}, recurrence={"start": start})
    assert golf("fit", "--config", recipe, *NO_SCORING) == 0
    assert result(tmp_path)["train"].get("recurrent_from_step") == step
    saved = torch.load(tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["golf"]["recurrent"] is (step is not None)


def test_training_ends_within_its_budget_and_uses_it(data: Path, tmp_path: Path) -> None:
    clock = {"budget_s": 3.0, "reserve_s": 0.5}
    recipe = write_recipe(tmp_path, data, trainer={"max_steps": -1}, clock=clock)
    assert golf("fit", "--config", recipe, *NO_SCORING) == 0
    saved = torch.load(tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 1.5 < saved["callbacks"]["WallClock"]["elapsed_s"] <= 2.7


def test_validation_stops_the_clock(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = GolfModule.on_validation_epoch_start

    def slow(module: GolfModule) -> None:
        time.sleep(1.0)
        original(module)

    monkeypatch.setattr(GolfModule, "on_validation_epoch_start", slow)
    trainer = {"max_steps": 6, "val_check_interval": 2, "check_val_every_n_epoch": None}
    clock, sight = {"budget_s": 60.0, "reserve_s": 1.0}, {"validate_while_training": True}
    recipe = write_recipe(tmp_path, data, trainer=trainer, clock=clock, data=sight)
    assert golf("fit", "--config", recipe, *NO_SCORING) == 0
    saved = torch.load(tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["callbacks"]["WallClock"]["elapsed_s"] < 1.5
    assert result(tmp_path)["ledger"]["validate"] > 3.0


@pytest.mark.parametrize(("device", "steps_left"), [("cpu", 3), ("cuda", 5)])
def test_the_stop_allows_for_the_age_of_the_agreed_time(
    monkeypatch: pytest.MonkeyPatch, device: str, steps_left: int
) -> None:
    """Steps of one second and 20 s to train in: it stops when the steps under way just fit."""
    agreed = SimpleNamespace(elapsed_s=0.0)
    module = SimpleNamespace(
        optimizer=SimpleNamespace(exchange=SimpleNamespace(agreed=lambda: agreed)),
        device=torch.device(device),
    )
    callback = WallClock(budget_s=22.0, reserve_s=2.0)
    assert isinstance(callback.clock, TrainingClock)
    for second in range(1, 30):
        agreed.elapsed_s = float(second)
        if callback._late(module):  # type: ignore[arg-type]
            break
    assert second == 20 - steps_left + 1
