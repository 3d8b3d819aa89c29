"""Notices that training stands still, finds the rank that holds it up, and ends the run."""

import threading
import time
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from golf_lightning.optim.faults import end_at_once, where_it_stands

ANSWER_S = 3.0
"""Seconds in which every living rank tells how far it came."""


class StepWatch(threading.Thread):
    """One thread a rank: when the rank makes no progress for ``timeout_s``, it and its peers compare how far they came.

    A rank that hangs in its own code is behind the others, who wait for it in a collective. It writes where it stands
    and ends; the others name it and end. Ranks whose threads do not answer either are named too. Nothing travels, and
    nothing is asked of the device, as long as training goes on.

    Args:
        rank: this rank.
        world_size: number of ranks.
        store: a connection to the process group's store for this thread alone.
        timeout_s: seconds without progress that end the run.
        end: ends the process with a message.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        store: Store,
        timeout_s: float,
        end: Callable[[str], object] = end_at_once,
    ) -> None:
        super().__init__(daemon=True, name="step-watch")
        self.rank, self.world_size, self.store, self.timeout_s = rank, world_size, store, timeout_s
        self._end = end
        self._watched = threading.get_ident()
        self._progress = 0
        self._since: float | None = None
        self._closed = threading.Event()

    def progress(self) -> None:
        """The rank has got further: all ranks call it at the same points of the program. Watches from now on."""
        self._progress += 1
        self._since = time.monotonic()

    def pause(self) -> None:
        """Do not watch until the next progress."""
        self._since = None

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def run(self) -> None:
        while not self._closed.wait(min(1.0, self.timeout_s / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self.timeout_s:
                self._end(self._verdict())
                return

    def _verdict(self) -> str:
        stood_s = self.timeout_s
        try:
            progress = self._compare()
        except dist.DistError:
            return f"rank {self.rank} stops: no step for {stood_s:g} s, and rank 0 is gone"
        missing = [rank for rank in range(self.world_size) if rank not in progress]
        last = min(progress.values())
        behind = [rank for rank, value in sorted(progress.items()) if value == last]
        if len(set(progress.values())) > 1 and self.rank in behind:
            return where_it_stands(f"rank {self.rank} hangs: no progress for {stood_s:g} s.", self._watched)
        time.sleep(ANSWER_S / 3)  # what the hanging rank writes comes first
        if missing:
            return f"error: rank {self.rank} stops: no step for {stood_s:g} s, and ranks {missing} do not answer"
        if len(behind) < len(progress):
            return f"rank {self.rank} stops: it waited {stood_s:g} s for ranks {behind}"
        return where_it_stands(
            f"no rank got further for {stood_s:g} s: they have lost each other, or a step takes longer than "
            f"--ranks.timeout_s allows. This is rank {self.rank}.",
            self._watched,
        )

    def _compare(self) -> dict[int, int]:
        """How far each rank that answers came."""
        keys = {rank: f"golf_lightning/progress/{rank}" for rank in range(self.world_size)}
        self.store.set(keys[self.rank], str(self._progress))
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline and not self.store.check(list(keys.values())):
            time.sleep(0.1)
        return {rank: int(self.store.get(key)) for rank, key in keys.items() if self.store.check([key])}
