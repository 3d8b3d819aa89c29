"""Two ranks, one of which raises, hangs, freezes or dies: the whole run ends, and says which and why."""

import os
import subprocess
import sys
import time
from pathlib import Path

import faulty
import pytest
import torch
from programs import Program, processes_in
from small_run import write_recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Standalone takes a free port: other tests may run beside this one.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STANDING = ("hangs", "freezes", "is stopped")
STOOD = "no progress for 4 s. It stands here:"


@pytest.mark.parametrize(
    ("way", "rank", "launcher", "first_words", "later_words"),
    [
        ("bad shard", 1, "lightning", "error: The shard data/part_3.bin is damaged", "rank 0 stops: rank 1 failed"),
        # Rank 1 ends with the process that started it, mostly before it can name rank 0.
        ("out of memory", 0, "lightning", "[rank0]: Traceback", "OutOfMemoryError: Tried to allocate 20 GiB."),
        ("hangs", 1, "lightning", f"error: rank 1 hangs: {STOOD}", "in hang_here"),
        ("freezes", 1, "lightning", "error: rank 0 stops:", "ranks [1]"),
        ("is killed", 1, "lightning", "error: rank 1 (process", "ended of SIGKILL, so the run ends"),
        ("exits", 1, "torchrun", "", "exitcode  : 7"),
        ("drifts", 1, "lightning", "error: The parameters of ranks [1] differ from rank 0's", "continue from its last"),
        ("hangs in warm-up", 1, "lightning", f"error: rank 1 hangs: {STOOD}", "in hang_here"),
        ("hangs in scoring", 0, "torchrun", f"error: rank 0 hangs: {STOOD}", "in hang_here"),
        ("is stopped in calibration", 1, "lightning", "error: rank 0 stops: ranks [1] have not answered for 8 s", ""),
        # The user's own process is the one that died; the shell says so.
        ("is killed", 0, "lightning", "", ""),
    ],
)
def test_the_whole_run_ends_with_the_error_of_the_rank_that_failed(
    data: Path, tmp_path: Path, way: str, rank: int, launcher: str, first_words: str, later_words: str
) -> None:
    recipe = write_recipe(
        tmp_path,
        data,
        trainer={"devices": 2, "max_steps": 5 if " in " in way else 1000},
        checkpoints={"every_steps": 2},
        # Long where nothing hangs, so that a busy machine is not taken for a hanging rank.
        ranks={
            "timeout_s": 4.0 if way.startswith(("hangs", "freezes", "is stopped")) else 60.0,
            "check_every_steps": 1,
        },
    )
    arguments = (way, str(rank), "fit", "--config", str(recipe))
    if launcher == "torchrun":
        command = [sys.executable, *TORCHRUN, faulty.__file__, *arguments]
        path = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=path)
        status, stderr = done.returncode, done.stderr
    else:
        program = Program(faulty.run, *arguments, folder=tmp_path, ranks=2)
        _, stderr = program.communicate(timeout=120)
        status = program.returncode
    assert status != 0
    # With the default of timeout_s it would be 21 s more, and so within a minute.
    assert time.monotonic() - float((tmp_path / "failed_at").read_text()) < 39
    words = ("error:", "rank ", "Traceback", "[rank")
    errors = [line for line in stderr.splitlines() if line.startswith(words)]
    assert first_words == "" or (errors and errors[0].startswith(first_words)), stderr
    assert later_words in stderr
    deadline = time.monotonic() + 5
    while (left := processes_in(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    if " in " not in way:
        assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
        assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 2
