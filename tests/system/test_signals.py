"""Ctrl-C and SIGTERM: saved, resumable, and the exit status that a shell expects."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import Program, start_golf
from small_run import golf, write_recipe

from golf_lightning import stages
from golf_lightning.__main__ import main

ENDLESS = {"trainer": {"max_steps": -1}, "clock": {"budget_s": 600.0, "reserve_s": 10.0}}


def wait_for_line(process: Any, beginning: str) -> None:
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(f"ended without a line {beginning!r}: {process.stderr.read()}")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_training_saves_and_stops(
    data: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    recipe = write_recipe(tmp_path, data, **ENDLESS)
    process = start_golf("fit", "--config", recipe, folder=tmp_path)
    wait_for_line(process, "step")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    run = tmp_path / "runs" / "small"
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert f"continue with --ckpt_path {checkpoint}" in output
    assert json.loads((run / "result.json").read_text())["run"]["status"] == f"stopped by {number.name}"
    assert not (run / "artifact.golf").exists()
    assert golf("report", run) == 0
    assert f"The run is not whole: stopped by {number.name}" in (run / "report.html").read_text()
    more = torch.load(checkpoint, weights_only=True)["global_step"] + 2
    assert golf("fit", "--config", recipe, "--ckpt_path", checkpoint, "--trainer.max_steps", more) == 0
    assert (run / "artifact.golf").is_file()


def children(process: Any) -> list[int]:
    """The ranks that a run's first process has started."""
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["rank 0", "rank 1", "all"])
def test_sigterm_to_one_rank_or_all_saves_and_stops_all(data: Path, tmp_path: Path, to: str) -> None:
    trainer = {"max_steps": -1, "devices": 2}
    recipe = write_recipe(tmp_path, data, **(ENDLESS | {"trainer": trainer}), console={"every_steps": 4})
    process = start_golf("fit", "--config", recipe, folder=tmp_path, ranks=2)
    wait_for_line(process, "step")
    (other,) = children(process)
    for pid in {"rank 0": [process.pid], "rank 1": [other], "all": [process.pid, other]}[to]:
        os.kill(pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors and "error:" not in errors
    checkpoint = tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt"
    assert f"continue with --ckpt_path {checkpoint}" in output
    assert torch.load(checkpoint, weights_only=True)["global_step"] > 0
    deadline = time.monotonic() + 5
    while (alive := Path(f"/proc/{other}").exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def tell_when_scoring_begins(arguments: list[str]) -> int:
    score = stages.score_documents

    def told(*values: Any, **named: Any) -> Any:
        print("scoring", flush=True)
        return score(*values, **named)

    stages.score_documents = told  # type: ignore[assignment]
    return main(arguments)


def test_ctrl_c_during_scoring_keeps_checkpoint_and_artifact(data: Path, tmp_path: Path) -> None:
    slow = {"ttt": {"chunk": 2, "slots": 1, "adapters": {"rank": 64}}, "ttt_baseline": False}
    recipe = write_recipe(tmp_path, data, model=slow)
    process = Program(tell_when_scoring_begins, "fit", "--config", recipe, folder=tmp_path)
    wait_for_line(process, "scoring")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    run = tmp_path / "runs" / "small"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    quick = write_recipe(tmp_path, data)
    assert golf("test", "--config", quick, "--ckpt_path", run / "artifact.golf") == 0
