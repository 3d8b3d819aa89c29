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


class Timeline:
    """A host that launches steps and a device that runs them, with the exchange between them, in simulated seconds.

    On a CPU the host runs the steps itself; on CUDA it waits in ``agreed`` until the step before last is done.
    """

    max_steps = -1
    global_step = 0
    fit_loop = SimpleNamespace(_should_accumulate=lambda: False)

    def __init__(self, device: str, step_s: list[float], launch_s: float) -> None:
        self.device, self.step_s, self.launch_s = torch.device(device), step_s, launch_s
        self.now = self.step_start_s = self.lag_s = 0.0
        self.optimizer = SimpleNamespace(exchange=self)
        self.sent: list[float] = []
        self.ends: list[float] = [0.0]
        self.should_stop = False

    def launch(self) -> None:
        length = self.step_s[len(self.sent) % len(self.step_s)]
        self.sent.append(self.step_start_s)
        if self.device.type == "cuda":
            begin = max(self.now, self.ends[-1])
            self.now += self.launch_s
            self.ends.append(max(begin + length, self.now))
        else:
            self.now += length
            self.ends.append(self.now)

    def agreed(self) -> Any:
        step = len(self.sent) - 2
        if step < 0:
            return SimpleNamespace(elapsed_s=0.0)
        self.now = max(self.now, self.ends[step + 1]) if self.device.type == "cuda" else self.now
        return SimpleNamespace(elapsed_s=self.sent[step])


@pytest.mark.parametrize("step_s", [[1.0], [1.0, 1.04, 0.97, 1.0]], ids=["even", "uneven"])
@pytest.mark.parametrize("train_s", [20.0, 20.3, 20.6, 20.9])
@pytest.mark.parametrize(("device", "launch_s"), [("cpu", 0.0), ("cuda", 0.02), ("cuda", 0.3), ("cuda", 0.9)])
def test_the_last_step_that_fits_is_the_last(
    monkeypatch: pytest.MonkeyPatch, device: str, launch_s: float, train_s: float, step_s: list[float]
) -> None:
    """Steps of a second: no step ends late, and less than a step and its spare part stays unused."""
    monkeypatch.setattr("callbacks.wall_clock.GolfModule", Timeline)
    line = Timeline(device, step_s, launch_s)
    callback = WallClock(budget_s=train_s + 2, reserve_s=2.0)
    callback.clock = TrainingClock(train_s + 2, 2.0, time=lambda: line.now)
    callback.on_train_start(line, line)  # type: ignore[arg-type]
    while not line.should_stop:
        line.launch()
        callback.on_train_batch_end(line, line, None, None, 0)  # type: ignore[arg-type]
    assert train_s - 1.35 < line.ends[-1] <= train_s


@pytest.mark.parametrize(("device", "launch_s"), [("cpu", 0.0), ("cuda", 0.02), ("cuda", 0.9)])
def test_schedules_follow_the_step_about_to_begin(
    monkeypatch: pytest.MonkeyPatch, device: str, launch_s: float
) -> None:
    """The agreed second plus the estimated lag is when the device begins the next step, once steps have been seen."""
    monkeypatch.setattr("callbacks.wall_clock.GolfModule", Timeline)
    line = Timeline(device, [1.0, 1.04, 0.97, 1.0], launch_s)
    callback = WallClock(budget_s=40.0, reserve_s=2.0)
    callback.clock = TrainingClock(40.0, 2.0, time=lambda: line.now)
    callback.on_train_start(line, line)  # type: ignore[arg-type]
    errors = []
    while not line.should_stop:
        line.launch()
        callback.on_train_batch_end(line, line, None, None, 0)  # type: ignore[arg-type]
        errors.append(line.agreed().elapsed_s + line.lag_s - line.ends[-1])
    assert max(abs(error) for error in errors[12:]) < 0.4  # without the lag it is 2 or 3


def test_one_slow_step_does_not_end_the_run_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.wall_clock.GolfModule", Timeline)
    line = Timeline("cpu", [1.0] * 14 + [4.0] + [1.0] * 15, 0.0)
    callback = WallClock(budget_s=22.5, reserve_s=2.0)
    callback.clock = TrainingClock(22.5, 2.0, time=lambda: line.now)
    callback.on_train_start(line, line)  # type: ignore[arg-type]
    while not line.should_stop:
        line.launch()
        callback.on_train_batch_end(line, line, None, None, 0)  # type: ignore[arg-type]
    assert line.ends[-1] == 20.0
