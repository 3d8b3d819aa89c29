"""MuonStrategy in real fits, each in processes of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_fit
import torch
from programs import Program

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@dataclass
class Fit:
    results: list[dict[str, Any]]
    weights: list[dict[str, torch.Tensor]]
    checkpoint: Path


def fit(folder: Path, devices: int, *options: str, launcher: tuple[str, ...] | None = None) -> Fit:
    """What a fit leaves; without a launcher it is forked, else started by one, where () is Lightning's."""
    folder.mkdir()
    arguments = (str(folder), "--devices", str(devices), *options)
    if launcher is None:
        program = Program(tiny_fit.run, *arguments, folder=folder, ranks=devices)
        said = "".join(program.communicate(timeout=200))
        status = program.returncode
    else:
        command = [sys.executable, *launcher, tiny_fit.__file__, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
        status, said = done.returncode, done.stdout + done.stderr
    assert status == 0, said
    ranks = range(devices)
    return Fit(
        [json.loads((folder / f"{rank}.json").read_text()) for rank in ranks],
        [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in ranks],
        folder / "end.ckpt",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fits")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Fit:
    return fit(folder / "alone", 1)


@pytest.fixture(scope="module")
def two(folder: Path) -> Fit:
    return fit(folder / "two", 2, launcher=TORCHRUN)


@pytest.fixture(scope="module")
def half(folder: Path) -> Fit:
    return fit(folder / "half", 2, "--steps", "3")


def micro_losses(run: Fit) -> list[float]:
    """The losses of all batches in the order of the stream, however many processes shared them."""
    return [loss for together in zip(*(result["losses"] for result in run.results), strict=True) for loss in together]


def test_the_module_is_not_wrapped(two: Fit) -> None:
    assert [(result["type"], result["world"]) for result in two.results] == [("Tiny", 2)] * 2


def test_two_ranks_have_the_curve_of_one_with_accumulation(alone: Fit, two: Fit) -> None:
    assert micro_losses(two) == pytest.approx(micro_losses(alone), rel=2e-6)


def test_weights_and_buffers_are_bit_equal_on_both_ranks(two: Fit) -> None:
    torch.testing.assert_close(two.weights[0], two.weights[1], rtol=0, atol=0)


def test_a_steady_step_runs_only_the_collectives_of_the_optimizer(two: Fit) -> None:
    # Three steps of two pools of banks, up and down in one; Lightning's broadcast of a SIGTERM flag would show up as
    # broadcast or all_reduce.
    counts = sorted(two.results[0]["calls"].items())
    assert [(name.rsplit("_", 1)[0] if "reduce_s" in name else name[:10], n) for name, n in counts] == [
        ("all_gather", 6),
        ("all_reduce", 3),
        ("reduce_scatter", 6),
    ]


def test_the_launcher_of_lightning_gives_the_same(two: Fit, folder: Path) -> None:
    launched = fit(folder / "launched", 2, launcher=())
    torch.testing.assert_close(launched.weights, two.weights, rtol=0, atol=0)


def test_resume_on_two_ranks_is_bit_identical(two: Fit, half: Fit, folder: Path) -> None:
    resumed = fit(folder / "resumed", 2, "--ckpt", str(half.checkpoint))
    torch.testing.assert_close(resumed.weights, two.weights, rtol=0, atol=0)


@pytest.mark.parametrize("devices", [1, 4])
def test_saved_on_two_ranks_resumes_on_another_number(alone: Fit, half: Fit, folder: Path, devices: int) -> None:
    resumed = fit(folder / f"resumed on {devices}", devices, "--ckpt", str(half.checkpoint))
    assert micro_losses(resumed) == pytest.approx(micro_losses(alone)[12:], rel=2e-6)


def test_a_rank_that_raises_ends_the_run(folder: Path) -> None:
    """Without any callback; tests/system/test_rank_faults.py has the other ways and launchers."""
    out = folder / "raised"
    out.mkdir()
    program = Program(tiny_fit.run, out, "--devices", "2", "--raise-on", "1", folder=out, ranks=2)
    _, errors = program.communicate(timeout=60)
    assert program.returncode != 0
    assert "rank 1 fell over" in errors
