"""What is said about ranks that hang or end, in one process."""

import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from golf_lightning.optim.faults import dismiss_lightnings_observer, how_it_ended
from golf_lightning.optim.step_watch import StepWatch


@pytest.mark.parametrize(("status", "words"), [(-9, "of SIGKILL"), (-15, "of SIGTERM"), (7, "with exit status 7")])
def test_an_exit_status_in_words(status: int, words: str) -> None:
    assert how_it_ended(status) == words


def verdicts(progress: dict[int, int], world_size: int = 3, timeout_s: float = 0.4) -> dict[int, str]:
    """What the watches of ranks say that made so much progress and then none; others have no watch."""
    store, said = dist.HashStore(), {}
    watches = {}
    for rank, times in progress.items():
        watches[rank] = StepWatch(
            rank, world_size, store, timeout_s, end=lambda line, rank=rank: said.update({rank: line})
        )
        for _ in range(times):
            watches[rank].progress()
        watches[rank].start()
    for watch in watches.values():
        watch.join(timeout=30)
    return said


def test_the_rank_behind_is_blamed_and_says_where_it_stands() -> None:
    said = verdicts({0: 7, 1: 6, 2: 7})
    assert said[1].startswith("error: rank 1 hangs: no progress for 0.4 s. It stands here:\n")
    assert __file__ in said[1]
    assert said[0] == "rank 0 stops: it waited 0.4 s for ranks [1]"
    assert said[2] == "rank 2 stops: it waited 0.4 s for ranks [1]"


def test_ranks_that_do_not_answer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf_lightning.optim.step_watch.ANSWER_S", 0.3)
    assert verdicts({0: 7, 2: 7})[0] == "error: rank 0 stops: no step for 0.4 s, and ranks [1] do not answer"


def test_where_all_wait_alike_no_rank_is_blamed() -> None:
    said = verdicts({0: 7, 1: 7}, world_size=2)
    assert all(line.startswith("error: no rank got further for 0.4 s") for line in said.values())


def test_progress_pause_and_close_keep_the_watch_quiet() -> None:
    said: list[str] = []
    watch = StepWatch(0, 1, dist.HashStore(), 0.6, end=said.append)
    watch.start()
    time.sleep(0.9)  # before any progress nothing is watched
    for _ in range(6):
        watch.progress()
        time.sleep(0.15)
    watch.pause()
    time.sleep(0.9)
    watch.progress()
    watch.close()
    watch.join(timeout=10)
    assert said == [] and not watch.is_alive()
    assert threading.current_thread() is threading.main_thread()


def test_lightnings_silent_observer_is_dismissed() -> None:
    """When this fails, Lightning has renamed its observer: look at ``dismiss_lightnings_observer`` again."""
    dead = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    dead.wait()
    observer = _ChildProcessObserver(main_pid=0, child_processes=[dead], sleep_period=0)
    killed = []
    observer._terminate_all = lambda: killed.append(True)  # type: ignore[method-assign]
    assert observer.name == "child-process-observer" and observer._run() and killed == [True]
    started, going_on = threading.Event(), threading.Event()
    sleep = observer.run
    observer.run = lambda: (started.set(), going_on.wait(10), sleep())  # type: ignore[method-assign,assignment]
    observer.start()
    started.wait(10)
    dismiss_lightnings_observer()
    going_on.set()
    observer.join(10)
    assert killed == [True] and not observer.is_alive()
