"""A rank that hangs, dies or is stopped while its peer waits in NCCL, which by itself would wait on."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu_run import write_gpu_recipe
from small_run import make_data

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

FAULTY = Path(__file__).parents[1] / "system" / "faulty.py"
TIMEOUT_S = 5.0
FIRST_LINES = {
    "hangs": "error: rank 1 hangs: no progress for 5 s",
    "is killed": "error: rank 1 (process",
    "hangs in warm-up": "error: rank 1 hangs: no progress for 5 s",
    "is stopped in warm-up": "error: rank 0 stops: ranks [1] have not answered for 10 s",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """All runs at once: they need seconds, and their starts as much again."""
    data = make_data(tmp_path_factory.mktemp("prepared"))
    started = {}
    for way in FIRST_LINES:
        tokens = {"train_tokens": 8192, "max_segments": 256, "val_tokens": 4096}
        recipe = write_gpu_recipe(tmp_path_factory.mktemp("run"), data, 2, ranks={"timeout_s": TIMEOUT_S}, data=tokens)
        command = [sys.executable, str(FAULTY), way, "1", "fit", "--config", str(recipe)]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        started[way] = subprocess.Popen(command, text=True, cwd=FAULTY.parents[2], **pipes)  # type: ignore[call-overload]
    yield started
    for process in started.values():
        process.kill()


@pytest.mark.parametrize("way", FIRST_LINES)
def test_the_run_ends_and_names_the_rank(runs: dict[str, "subprocess.Popen[str]"], way: str) -> None:
    began = time.monotonic()
    stderr = runs[way].communicate(timeout=90)[1]
    assert runs[way].returncode != 0
    assert time.monotonic() - began < 80
    errors = [line for line in stderr.splitlines() if line.startswith(("error:", "rank ", "Traceback"))]
    assert errors and errors[0].startswith(FIRST_LINES[way]), stderr
