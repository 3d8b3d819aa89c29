"""Interrupted or not, warmed up or not: the same run."""

import json
from pathlib import Path
from typing import Any

import faulty
import pytest
import torch
from programs import Program, start_golf
from small_run import golf, make_data, write_recipe

from callbacks.console import Console
from golf_lightning.data.manifest import Manifest
from golf_lightning.data.shards import map_shard, write_shard
from golf_lightning.files import sha256_of

NO_SCORING = ("--gptq.at_train_end", "false", "--ttt.enabled", "false")

EXACT = {"optimizer": {"communication_dtype": "float32", "newton_schulz_dtype": "float64"}}


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "runs" / "small" / "checkpoints" / "last.ckpt", weights_only=True)


def score(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "small" / "result.json").read_text())["scores"]["before_quantization"]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested containers under its path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{name}/{i}").items()}
    return {name: value}


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Model, optimizer, average and position in the data, bit for bit.

    The run folder's state is the log of data access, which tells when each session was.
    """
    parts = ("state_dict", "optimizer_states", "GolfDataModule", "golf", "global_step")
    for part in (*parts, "callbacks"):
        left, right = (
            {name: value for name, value in flat(run[part]).items() if not name.startswith("/RunFolder")}
            for run in (one, two)
        )
        assert left.keys() == right.keys()
        for name, value in left.items():
            equal = torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
            assert equal, f"{part}{name}"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_continues_bit_for_bit(data: Path, tmp_path: Path, accumulate: int) -> None:
    """Six steps at once, and six steps with a checkpoint after the third from which the rest is done again."""
    trainer = {"accumulate_grad_batches": accumulate}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = write_recipe(tmp_path / "whole", data, trainer=trainer)
    assert golf("fit", "--config", whole, *NO_SCORING) == 0
    parts = write_recipe(tmp_path / "parts", data, trainer=trainer, checkpoints={"every_steps": 3})
    stop = StopAfter(3)
    with pytest.raises(StopAfter.Stop), stop:
        golf("fit", "--config", parts, *NO_SCORING)
    halfway = tmp_path / "parts" / "runs" / "small" / "checkpoints" / "last.ckpt"
    assert saved(tmp_path / "parts")["global_step"] == 3
    assert golf("fit", "--config", parts, "--ckpt_path", halfway, *NO_SCORING) == 0
    assert_same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of six steps of four micro-batches, at once and on one rank."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    recipe = write_recipe(folder, data, trainer={"accumulate_grad_batches": 4}, model=EXACT)
    assert golf("fit", "--config", recipe, *NO_SCORING) == 0
    return folder


@pytest.fixture(scope="module")
def broken_off(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks that failed after the third of its six steps, where it had just been saved."""
    folder = tmp_path_factory.mktemp("broken off")
    trainer = {"accumulate_grad_batches": 2, "devices": 2}
    recipe = write_recipe(folder, data, trainer=trainer, model=EXACT, checkpoints={"every_steps": 3})
    arguments = ("bad shard", "1", "fit", *NO_SCORING, "--config", recipe)
    program = Program(faulty.run, *arguments, folder=folder, ranks=2)
    _, errors = program.communicate(timeout=240)
    assert program.returncode != 0
    assert saved(folder)["global_step"] == 3, errors
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_run_of_two_ranks_continues_on_any_number(
    data: Path, tmp_path: Path, uninterrupted: Path, broken_off: Path, devices: int
) -> None:
    """Four ranks are more than there are batches to validate."""
    assert Manifest.load(data).splits["val"].tokens < 2 * 600
    trainer = {"accumulate_grad_batches": 4 // devices, "devices": devices}
    recipe = write_recipe(tmp_path, data, trainer=trainer, model=EXACT, data={"val_tokens": 600})
    checkpoint = broken_off / "runs" / "small" / "checkpoints" / "last.ckpt"
    arguments = ("fit", "--config", recipe, "--ckpt_path", checkpoint, *NO_SCORING)
    program = start_golf(*arguments, folder=tmp_path, ranks=devices)
    _, errors = program.communicate(timeout=240)
    assert program.returncode == 0, errors
    ours, theirs = score(tmp_path), score(uninterrupted)
    assert (ours["targets"], ours["table_bytes"]) == (theirs["targets"], theirs["table_bytes"])
    assert ours["nats"] == pytest.approx(theirs["nats"], rel=1e-5)
    one, two = saved(uninterrupted), saved(tmp_path)
    assert one["GolfDataModule"] == two["GolfDataModule"]
    for part in ("state_dict", "optimizer_states", "callbacks"):
        left, right = (
            # The log of data access tells of two sessions where there were two.
            {name: value for name, value in flat(saved_run[part]).items() if "/access" not in name}
            for saved_run in (one, two)
        )
        assert left.keys() == right.keys()
        for name, value in left.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(right[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


class StopAfter:
    """Raises inside training after a step, as an accident would."""

    class Stop(Exception):
        pass

    def __init__(self, step: int) -> None:
        self.step = step
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        original, stop = Console.on_train_batch_start, self

        def accident(callback: Any, trainer: Any, *arguments: Any) -> None:
            if trainer.global_step == stop.step:
                raise StopAfter.Stop
            original(callback, trainer, *arguments)

        self.patch.setattr(Console, "on_train_batch_start", accident)

    def __exit__(self, *exception: object) -> None:
        self.patch.undo()


def test_warm_up_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    for name, enabled in (("warm", "true"), ("cold", "false")):
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name, data)
        assert golf("fit", "--config", recipe, "--warmup.enabled", enabled, *NO_SCORING) == 0
    assert_same(saved(tmp_path / "warm"), saved(tmp_path / "cold"))


def test_the_clock_goes_on_where_it_was(data: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = write_recipe(tmp_path, data, clock={"budget_s": 4.0, "reserve_s": 1.0}, trainer={"max_steps": -1})
    assert golf("fit", "--config", recipe, *NO_SCORING) == 0
    first = saved(tmp_path)
    clock_s = first["callbacks"]["WallClock"]["elapsed_s"]
    assert 2.0 < clock_s <= 3.2
    checkpoint = tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt"
    assert golf("fit", "--config", recipe, "--ckpt_path", checkpoint, "--clock.budget_s", 5.0, *NO_SCORING) == 0
    second = saved(tmp_path)
    assert second["callbacks"]["WallClock"]["elapsed_s"] - clock_s == pytest.approx(1.0, abs=0.5)
    assert second["global_step"] > first["global_step"]
    assert len(list((tmp_path / "runs" / "small" / "metrics").iterdir())) == 2


def test_a_finished_run_says_that_it_is_finished(data: Path, finished: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = write_recipe(tmp_path, data)
    assert golf("fit", "--config", recipe, "--ckpt_path", finished / "checkpoints" / "last.ckpt") == 0
    assert "nothing left to train: the checkpoint is at step 6 of 6" in capsys.readouterr().out
    assert not list((tmp_path / "runs").rglob("result.json"))


def test_another_runs_data_is_refused(data: Path, finished: Path, tmp_path: Path, capsys: Any) -> None:
    other = make_data(tmp_path / "other")
    shard = next(other.glob("fineweb_train_*.bin"))
    tokens = map_shard(shard).copy()
    tokens[5] ^= 1
    write_shard(shard, tokens)
    manifest = Manifest.load(other)
    manifest.splits["train"].shards[0].sha256 = sha256_of(shard)
    manifest.save(other)
    recipe = write_recipe(tmp_path, other)
    assert golf("fit", "--config", recipe, "--ckpt_path", finished / "checkpoints" / "last.ckpt") == 2
    assert "trained on other data" in capsys.readouterr().err
