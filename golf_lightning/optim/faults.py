"""A rank that fails takes the whole run with it, and its own error is the one that is read."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

FIRST_FAULT = "golf_lightning/first_fault"
"""Key in the process group's store under which the first rank that fails leaves its name and error."""

GRACE_S = 2.0
"""Seconds that a rank with an error from a collective leaves to what watches processes, before it shows its error."""

INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit statuses of ranks that were told to stop; rank 0 was too, and is about to end as well."""

PR_SET_PDEATHSIG = 1
"""Linux's number of the request; see prctl(2)."""


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however it ends; elsewhere than on Linux, do nothing.

    A rank whose launcher was killed would otherwise wait in a collective, hold its GPU and belong to nobody.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel knew
            os._exit(1)


def how_it_ended(status: int) -> str:
    """A process's exit status in words: ``of SIGKILL`` or ``with exit status 3``."""
    return f"of {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


class ProcessWatch(threading.Thread):
    """Ends this process, the first rank of a host, and all ranks that it started, when one of them has failed.

    Lightning's launcher does that too, but without a word and only every 5 seconds.

    Args:
        processes: the started ranks, in order.
        first_rank: rank of the first of them.
        interval_s: seconds between looks.
    """

    def __init__(
        self, processes: Sequence["subprocess.Popen[bytes]"], first_rank: int = 1, interval_s: float = 0.5
    ) -> None:
        super().__init__(daemon=True, name="process-watch")
        self.processes = processes
        self.first_rank = first_rank
        self.interval_s = interval_s

    def run(self) -> None:
        dismiss_lightnings_observer()
        while not all(process.poll() == 0 for process in self.processes):
            for rank, process in enumerate(self.processes, start=self.first_rank):
                if status := process.poll():
                    if status in INTERRUPTED:
                        time.sleep(2 * GRACE_S)
                    elif status > 0:
                        # It has left its error, which this rank's own end names: see report_fault.
                        time.sleep(GRACE_S / 2)
                    self.end(f"rank {rank} (process {process.pid}) ended {how_it_ended(status)}")
            time.sleep(self.interval_s)

    def end(self, reason: str) -> NoReturn:
        """Say why, kill every other rank and end with status 1."""
        for process in self.processes:
            process.kill()
        end_at_once(f"error: {reason}, so the run ends; its output above may say why.")


def dismiss_lightnings_observer() -> None:
    """Let Lightning's own watch look at nothing: when it is the first to see a dead rank, it kills all without a word.

    Thread and method are private names, present in lightning 2.6; a test says when they go.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer" and hasattr(thread, "_run"):
            thread._run = lambda: True


def end_at_once(line: str) -> NoReturn:
    """Print a line on stderr and end the process with status 1, whatever its other threads wait for."""
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def where_it_stands(line: str, thread: int) -> str:
    """An error's line, and under it where in the program a thread of this process is."""
    stack = "".join(traceback.format_stack(sys._current_frames().get(thread))).rstrip()
    return f"error: {line} It stands here:\n{stack}"


def report_fault(error: BaseException, rank: int, store: Store, processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Let the first rank that fails show its error; every other one says in a sentence which that was, and ends.

    Call it on the rank that has caught ``error``, before it raises it on.

    Args:
        error: what the rank is about to raise.
        rank: this rank.
        store: the process group's store.
        processes: ranks that this process has started; empty on all but rank 0.
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    own = f"rank {rank} failed with {text}"
    try:
        first = store.compare_set(FIRST_FAULT, "", own).decode()
    except dist.DistError:
        first = "rank 0, which keeps the ranks' meeting place, is gone"
    if first == own:
        if isinstance(error, RuntimeError):
            # The error may only say that another rank has died, which those who watch processes tell better.
            time.sleep(GRACE_S)
        return
    deadline = time.monotonic() + 2 * GRACE_S
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)  # the first one may still be writing, and would end with this process
    end_at_once(f"rank {rank} stops: {first}")
