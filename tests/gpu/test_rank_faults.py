"""A rank that hangs or dies while its peer waits in NCCL, which by itself would wait on."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gpu_run import write_gpu_recipe
from small_run import make_data

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

FAULTY = Path(__file__).parents[1] / "system" / "faulty.py"


@pytest.mark.parametrize(
    ("way", "first_line"),
    [("hangs", "error: rank 1 hangs: no progress for 5 s"), ("is killed", "error: rank 1 (process")],
)
def test_the_run_ends_and_names_the_rank(tmp_path: Path, way: str, first_line: str) -> None:
    recipe = write_gpu_recipe(tmp_path, make_data(tmp_path / "prepared"), 2, ranks={"timeout_s": 5.0})
    command = [sys.executable, str(FAULTY), way, "1", "fit", "--config", str(recipe)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=FAULTY.parents[2])
    assert done.returncode != 0
    assert time.monotonic() - started < 90
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error:", "rank ", "Traceback"))]
    assert errors[0].startswith(first_line), done.stderr
