"""Sharing a stream of documents among ranks: one queue, in order, and a check that every rank came to its end."""

import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from golf_lightning.errors import GolfError

HEARTBEAT_SECONDS = 1.0


class DocumentQueue:
    """Documents in order, each given to the rank that asks first.

    The queue is a counter in a key-value store that rank 0 serves; every rank makes it, at the same time.

    Args:
        rank: this process, from 0.
        world_size: number of processes; with 1 nothing is shared.
        patience_seconds: silence after which a rank counts as dead.
    """

    def __init__(self, rank: int, world_size: int, *, patience_seconds: float = 180.0) -> None:
        self.rank, self.world_size, self.patience = rank, world_size, patience_seconds
        self._store = _open_store(rank, world_size) if world_size > 1 else None
        self._beat = 0
        self._last_beat = -HEARTBEAT_SECONDS

    def share(self, name: str, documents: Sequence[int], slots: int) -> Iterator[int]:
        """This rank's share of ``documents``, in order, taken as it is asked for.

        Args:
            name: tells one queue from another.
            documents: the same on every rank.
            slots: documents that a rank has open at a time. Where all ranks' slots hold all documents, these are dealt
                in turn, since the first rank to ask would take more than its part.
        """
        if self._store is None or len(documents) <= slots * self.world_size:
            yield from documents[self.rank :: self.world_size]
            return
        self.alive()
        while (place := self._add(f"{name}/next", 1) - 1) < len(documents):
            self.alive()
            yield documents[place]

    def alive(self) -> None:
        """Tell the others that this rank lives; cheap to call often."""
        if self._store is not None and time.monotonic() - self._last_beat >= HEARTBEAT_SECONDS:
            self._beat = self._add(f"beat/{self.rank}", 1)
            self._last_beat = time.monotonic()

    def finish(self, name: str) -> None:
        """Wait until every rank has come here.

        Raises:
            GolfError: a rank has been silent for too long.
        """
        if self._store is None:
            return
        self._add(f"{name}/done/{self.rank}", 1)
        seen = {rank: (-1, time.monotonic()) for rank in range(self.world_size)}
        while missing := [rank for rank in seen if not self._add(f"{name}/done/{rank}", 0)]:
            self.alive()
            for rank in missing:
                beat, now = self._add(f"beat/{rank}", 0), time.monotonic()
                if beat != seen[rank][0]:
                    seen[rank] = beat, now
                elif now - seen[rank][1] > self.patience:
                    raise GolfError(
                        f"Rank {rank} has not answered for {self.patience:.0f} s while scoring; "
                        "start the same command again, it goes on where scoring stopped."
                    )
            time.sleep(0.05)
        # Rank 0 serves the store, so it leaves last.
        left, began = self._add(f"{name}/left", 1), time.monotonic()
        while self.rank == 0 and left < self.world_size and time.monotonic() - began < self.patience:
            time.sleep(0.01)
            left = self._add(f"{name}/left", 0)

    def _add(self, key: str, amount: int) -> int:
        assert self._store is not None
        try:
            return int(self._store.add(key, amount))
        except (dist.DistNetworkError, dist.DistStoreError) as error:
            raise GolfError(
                f"Rank 0, which hands out the documents, is gone ({type(error).__name__}); "
                "start the same command again, it goes on where scoring stopped."
            ) from error


def _open_store(rank: int, world_size: int) -> TCPStore:
    """A store that rank 0 serves at a port of its own."""
    timeout = timedelta(seconds=60)
    store, port = None, [0]
    if rank == 0:
        store = TCPStore("localhost", 0, world_size, True, timeout=timeout, wait_for_workers=False)
        port = [store.port]
    dist.broadcast_object_list(port, src=0, device=_own_device())
    if store is None:
        host = os.environ.get("MASTER_ADDR", "localhost")
        store = TCPStore(host, port[0], world_size, False, timeout=timeout, wait_for_workers=False)
    return store


def _own_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
