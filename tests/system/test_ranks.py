"""The whole path on two processes: the same run as on one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import rank_log
from programs import Program
from small_run import golf, golf_alone, write_recipe

from golf_lightning.__main__ import main
from golf_lightning.reporting.documents import DocumentTable


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "small" / "result.json").read_text())["scores"]


def test_two_ranks_repeat_one_that_accumulates(data: Path, tmp_path: Path) -> None:
    exact = {"optimizer": {"communication_dtype": "float32"}}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = write_recipe(tmp_path / "one", data, trainer={"accumulate_grad_batches": 2}, model=exact)
    assert golf("fit", "--config", one) == 0
    two = write_recipe(tmp_path / "two", data, trainer={"devices": 2}, model=exact)
    done = golf_alone("fit", "--config", two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("after TTT") == 1
    alone, shared = scores(tmp_path / "one"), scores(tmp_path / "two")
    for name in ("before_quantization", "quantized", "ttt_lr0", "ttt"):
        assert shared[name]["targets"] == alone[name]["targets"]
        assert shared[name]["table_bytes"] == alone[name]["table_bytes"]
    assert shared["before_quantization"]["nats"] == pytest.approx(alone["before_quantization"]["nats"], rel=1e-4)
    ours, theirs = (DocumentTable.read(tmp_path / name / "runs" / "small" / "documents.csv") for name in ("one", "two"))
    assert (ours.targets == theirs.targets).all()
    assert (ours.bytes == theirs.bytes).all()
    assert theirs.nats["ttt"].sum() == pytest.approx(shared["ttt"]["nats"], rel=1e-12)
    # One rounding decision of the quantizer may differ after sums in another order.
    assert shared["ttt"]["nats"] == pytest.approx(alone["ttt"]["nats"], rel=1e-3)


def test_ranks_whose_clocks_differ_do_the_same_in_every_step(data: Path, tmp_path: Path) -> None:
    """Rank 1's clock runs twice as fast; learning rate, momentum, recurrence and the stop follow rank 0's."""
    budget_s, reserve_s = 5.0, 1.0
    recipe = write_recipe(
        tmp_path,
        data,
        trainer={"devices": 2, "max_steps": -1},
        clock={"budget_s": budget_s, "reserve_s": reserve_s},
        recurrence={"start": 0.5},
        gptq={"at_train_end": False},
        ttt={"enabled": False},
        ranks={"check_every_steps": 10},
    )
    program = Program(rank_log.run, tmp_path, "fit", "--config", recipe, folder=tmp_path, ranks=2)
    _, errors = program.communicate(timeout=240)
    assert program.returncode == 0, errors
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["steps"] == second["steps"]  # as many, and alike
    assert second["clock_s"] > 1.5 * first["clock_s"]
    assert 0.5 * budget_s < first["clock_s"] <= budget_s
    _, rates, _, recurrent = zip(*first["steps"], strict=True)
    assert recurrent[0] is False and recurrent[-1] is True
    assert rates[-1] < 0.5 * rates[0]


def unlike(arguments: list[str]) -> int:
    """A fit whose last option has another value on each rank."""
    recipe, option, *values = arguments
    value = values[int(os.environ.get("LOCAL_RANK", 0))]
    return main(["fit", "--config", recipe, "--trainer.devices", "2", option, value])


@pytest.mark.parametrize(
    "options", [("--model.gpt.mlp_width", "32", "48"), ("--data.shuffle_seed", "1", "2")], ids=["model", "data"]
)
def test_ranks_that_differ_are_refused_at_the_start(data: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    recipe = write_recipe(tmp_path, data)
    program = Program(unlike, recipe, *options, folder=tmp_path, ranks=2)
    _, errors = program.communicate(timeout=120)
    assert program.returncode != 0
    assert "error: The model's or the data's configuration" in errors
    assert not list((tmp_path / "runs").rglob("config.yaml"))
