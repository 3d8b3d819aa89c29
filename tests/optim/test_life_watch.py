"""Ranks that stop, sleep or rightly wait, in threads of one process and in real ones."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist
from life_work import PATIENCE_S, long_work, spin
from ranks import run_on_ranks

from golf_lightning.optim.life_watch import LifeWatch


def first_verdict(work: Callable[[], object], wait_s: float, store: dist.Store | None = None, ranks: int = 1) -> str:
    """What the watch of rank 0 says of a thread that does ``work``, or nothing for a while."""
    said: list[str] = []
    ended = threading.Event()

    def live() -> None:
        end = lambda line: (said.append(line), ended.set())  # noqa: E731
        watch = LifeWatch(0, ranks, store or dist.HashStore(), PATIENCE_S, end=end)
        watch.start()
        work()
        watch.close()

    threading.Thread(target=live, daemon=True).start()
    ended.wait(wait_s)
    return "".join(said)


def test_a_rank_that_sleeps_says_where() -> None:
    said = first_verdict(lambda: time.sleep(30), 10)
    assert said.startswith(f"error: rank 0 hangs: no progress for {PATIENCE_S:g} s. It stands here:\n")
    assert __file__ in said


def test_a_lock_that_never_opens_is_a_hang() -> None:
    assert "in wait" in first_verdict(threading.Event().wait, 10)


def wait_for_a_program() -> None:
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({3 * PATIENCE_S})"], check=True)


def wait_for_a_pool() -> None:
    with ThreadPoolExecutor() as pool:
        pool.submit(time.sleep, 3 * PATIENCE_S).result()


def wait_for_autograd() -> None:
    """As the caller of a backward pass on a GPU: asleep in torch's own code while the engine's thread works."""
    exec(f"import time; time.sleep({3 * PATIENCE_S})", {"__name__": "torch.autograd.graph"})


def poll() -> None:
    for _ in range(60):
        time.sleep(PATIENCE_S / 20)


def test_work_and_waiting_for_workers_are_none() -> None:
    waits = [wait_for_a_program, wait_for_a_pool, wait_for_autograd]
    kinds: list[Callable[[], object]] = [lambda: spin(3 * PATIENCE_S), poll, *waits]
    with ThreadPoolExecutor() as pool:
        said = pool.map(lambda work: first_verdict(work, 4 * PATIENCE_S), kinds)
    assert list(said) == [""] * 5


def test_a_rank_that_does_not_answer_is_named() -> None:
    store = dist.HashStore()
    store.set("golf_lightning/life/1", "7")
    said = first_verdict(lambda: spin(10), 10, store, ranks=2)
    assert said == f"error: rank 0 stops: ranks [1] have not answered for {2 * PATIENCE_S:g} s"


def test_a_rank_that_has_finished_is_not_missing() -> None:
    store = dist.HashStore()
    finished = LifeWatch(1, 2, store, PATIENCE_S, end=lambda line: None)
    finished.start()
    time.sleep(PATIENCE_S / 2)
    finished.close()
    assert int(store.get("golf_lightning/life/1")) < 0
    assert first_verdict(lambda: spin(4 * PATIENCE_S), 4 * PATIENCE_S, store, ranks=2) == ""


class FrozenStore(dist.HashStore):
    """As that of a rank 0 that was stopped: no call returns."""

    def set(self, key: str, value: str) -> None:
        threading.Event().wait(30)


def test_a_store_that_does_not_answer_ends_the_run_too() -> None:
    said = first_verdict(lambda: spin(10), 10, FrozenStore(), ranks=2)
    assert said.startswith("error: rank 0 stops: rank 0, which keeps the ranks' meeting place, has not answered")


def test_ranks_may_wait_for_long_work_of_one(tmp_path: Path) -> None:
    """Rank 0 works, and waits for a program, for far longer than the patience; rank 1 waits for it in a collective."""
    assert run_on_ranks(long_work, 2, tmp_path) == [[1.0, 2.0], [1.0, 2.0]]
