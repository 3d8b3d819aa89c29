"""Two ranks, one of which raises, hangs, freezes or dies: the whole run ends, and says which and why."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_run import write_recipe

pytestmark = pytest.mark.slow

FAULTY = Path(__file__).with_name("faulty.py")
# Standalone takes a free port: other tests may run beside this one.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STANDING = ("hangs", "freezes", "is stopped")
STOOD = "no progress for 4 s. It stands here:"


def processes_with(text: str) -> list[str]:
    """Command lines of living processes that hold ``text``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.name != str(os.getpid()):
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += [line] if text in line else []
    return found


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
    starter = TORCHRUN if launcher == "torchrun" else ()
    command = [sys.executable, *starter, str(FAULTY), way, str(rank), "fit", "--config", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=FAULTY.parents[2])
    assert done.returncode != 0
    # With the default of timeout_s it would be 21 s more, and so within a minute.
    assert time.monotonic() - float((tmp_path / "failed_at").read_text()) < 39
    words = ("error:", "rank ", "Traceback", "[rank")
    errors = [line for line in done.stderr.splitlines() if line.startswith(words)]
    assert first_words == "" or (errors and errors[0].startswith(first_words)), done.stderr
    assert later_words in done.stderr
    deadline = time.monotonic() + 5
    while (left := processes_with(str(recipe))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    if " in " not in way:
        assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
        assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 2
