"""Notices ranks that have stopped or sleep, in every stage of a run, and ends it."""

import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from golf_lightning.optim.faults import end_at_once, where_it_stands

LEFT = -(1 << 40)
"""Added to the beats of a rank that has finished: fewer than none."""

WAITS = (
    "torch.distributed",
    "torch.autograd",
    "golf_lightning.optim.",
    "golf_lightning.files",
    "concurrent.futures",
    "multiprocessing",
    "subprocess",
)
"""Modules in whose code a rank rightly sleeps: for other ranks, for a slow disk, or for what works on its behalf.

Among the last is autograd, whose engine runs a GPU's backward pass, and compiles it, in a thread of its own.
"""

PLUMBING = ("threading", "selectors", "queue", "socket")
"""Modules that sleep on behalf of their caller."""


class LifeWatch(threading.Thread):
    """Ends the process when a rank no longer runs, or when this one's own thread sleeps for no good reason.

    How long a stage may take says nothing: compilation, validation or packing may rightly take minutes. Two signs do:

    - Every rank counts up in the store once a second, from a thread beside its work. A rank whose count stands for
      ``2 * timeout_s`` is stopped, frozen or lost.
    - A thread that works, spins for its GPU or polls uses its processor. One that uses none at all for ``timeout_s``,
      outside the code of :data:`WAITS`, hangs: on a lock, a file or a sleep that never ends. It says where it stands.

    Not found are a thread that works without end, a backward pass that never ends outside of a training step, and a GPU
    or a process of the rank's own that does not answer.
    Seconds count by this thread's own looks, so a machine that was suspended wakes up to no alarm.

    Args:
        rank: this rank.
        world_size: number of ranks.
        store: a connection to the process group's store for this watch alone.
        timeout_s: seconds, see above.
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
        super().__init__(daemon=True, name="life-watch")
        self.rank, self.store, self.timeout_s = rank, store, timeout_s
        self._keys = [f"golf_lightning/life/{peer}" for peer in range(world_size)]
        self._interval_s = min(1.0, timeout_s / 8)
        self._end = end
        self._watched = threading.get_ident()
        # Not every system lets one thread read the clock of another.
        clock_of = getattr(time, "pthread_getcpuclockid", None)
        self._clock = clock_of(self._watched) if clock_of else None
        self._used, self._awake = -1.0, 0
        self._looks = self._answered = 0
        self._heard = dict.fromkeys(range(world_size), (-1, 0))
        self._closed = threading.Event()
        # Its own thread, for a store whose rank is stopped does not answer.
        self._teller = threading.Thread(target=self._tell, daemon=True, name="life-teller")

    def close(self) -> None:
        """End the watch, and let the others know that this rank is not missing."""
        self._closed.set()
        self._teller.join(timeout=2.0)

    def run(self) -> None:
        self._teller.start()
        while not self._closed.wait(self._interval_s):
            self._looks += 1
            if verdict := self._verdict():
                self._end(verdict)
                return

    def _tell(self) -> None:
        try:
            self.store.set(self._keys[self.rank], "0")
            while not self._closed.wait(self._interval_s):
                self.store.add(self._keys[self.rank], 1)
                for peer, key in enumerate(self._keys):
                    if (beats := self.store.add(key, 0)) != self._heard[peer][0]:
                        self._heard[peer] = beats, self._looks
                self._answered = self._looks
            self.store.add(self._keys[self.rank], LEFT)
        except dist.DistError:
            return  # rank 0 has ended, which its own watchers tell; if nobody ends this rank, the store's silence does

    def _verdict(self) -> str | None:
        if self._clock is not None and self._seconds_since(self._last_awake()) > self.timeout_s:
            return where_it_stands(f"rank {self.rank} hangs: no progress for {self.timeout_s:g} s.", self._watched)
        patience_s = 2 * self.timeout_s
        stops = f"error: rank {self.rank} stops:"
        if self._seconds_since(self._answered) > patience_s:
            return f"{stops} rank 0, which keeps the ranks' meeting place, has not answered for {patience_s:g} s"
        heard = self._heard.items()
        silent = [peer for peer, (beats, look) in heard if beats >= 0 and self._seconds_since(look) > patience_s]
        return f"{stops} ranks {silent} have not answered for {patience_s:g} s" if silent else None

    def _seconds_since(self, look: int) -> float:
        return (self._looks - look) * self._interval_s

    def _last_awake(self) -> int:
        """The last look at which the watched thread had used its processor, or slept for a good reason."""
        assert self._clock is not None
        used = time.clock_gettime(self._clock)
        if used != self._used or self._waits():
            self._used, self._awake = used, self._looks
        return self._awake

    def _waits(self) -> bool:
        frame = sys._current_frames().get(self._watched)
        while frame is not None and frame.f_globals["__name__"].startswith(PLUMBING):
            frame = frame.f_back
        return frame is None or frame.f_globals["__name__"].startswith(WAITS)
