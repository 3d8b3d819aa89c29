"""Who runs when: documents in slots, the next chunks of some of them packed into steps.

All of it follows from the documents' lengths, so it is settled on the host and nothing waits for the device. Nothing
here reaches a score: a document's scores depend on its own chunks alone, in their order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# S documents of a step, C targets of a chunk, N documents of the split, P slots

Counts = npt.NDArray[np.int64]

ENDING_SHARE = 4
"""One part in so many of a step's rows goes to documents nearest to their end while others wait. With 1,024 documents
of the contest's lengths in 256 slots a tenth leaves long ones to run on alone, a quarter none; a half gains no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowPlan:
    """How a document is cut into chunks and windows.

    Chunk c holds targets c*C up to (c+1)*C and sees the inputs from ``max(0, (c+1)*C - window)`` on. The start is a
    full chunk's even where the document ends earlier, so that it says nothing about the document's length. Exact
    scoring runs the whole window for every chunk; cached scoring runs the chunk's own inputs and keeps keys and values
    of the rest.

    Args:
        chunk: targets of a chunk.
        window: longest context of a chunk, itself included, in tokens; at least ``chunk``.
        cached: whether a pass runs over the chunk alone.
        tile: rows are padded to a multiple of this.
    """

    chunk: int
    window: int
    cached: bool
    tile: int

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk, padded."""
        return -(-self.chunk // self.tile) * self.tile

    @property
    def window_rows(self) -> int:
        """Most rows that a chunk's pass may take, padded."""
        return self.chunk_rows if self.cached else -(-self.window // self.tile) * self.tile

    def rows(self, chunks_S: Counts) -> Counts:
        """Padded rows of the pass over each document's ``chunks_S``-th chunk."""
        if self.cached:
            return np.full_like(chunks_S, self.chunk_rows)
        used = np.minimum((chunks_S + 1) * self.chunk, self.window)
        return -(-used // self.tile) * self.tile

    def chunks(self, targets_N: Counts) -> Counts:
        """Chunks of documents with so many targets."""
        return -(-targets_N // self.chunk)

    def work(self, targets_N: Counts) -> Counts:
        """Rows of all passes of each document, ``[N]``: what scoring it costs."""
        chunks_N = self.chunks(targets_N)
        if self.cached:
            return chunks_N * self.chunk_rows
        growing = -(-self.window // self.chunk)
        cumulative = np.concatenate([[0], np.cumsum(self.rows(np.arange(growing)))])
        return cumulative[np.minimum(chunks_N, growing)] + np.maximum(chunks_N - growing, 0) * self.window_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One pass: the next chunk of S documents, packed. Arrays are ``[S]`` int64.

    Attributes:
        slots: where each document's state lives.
        documents: index of each document in the stream.
        first: position in the document of the pass's first token.
        length: tokens of the pass before padding.
        rows: rows of the pass with padding.
        row: row of the pass that predicts the chunk's first target.
        count: targets of the chunk.
        fresh: bool, the document's first chunk: its slot must be reset.
        trains: bool, further chunks follow: the document learns from this one.
    """

    slots: Counts
    documents: Counts
    first: Counts
    length: Counts
    rows: Counts
    row: Counts
    count: Counts
    fresh: npt.NDArray[np.bool_]
    trains: npt.NDArray[np.bool_]


def schedule(
    targets_N: Counts, documents: Iterable[int], plan: WindowPlan, *, slots: int, rows: int, together: int
) -> Iterator[Step]:
    """Steps until every document is done.

    Documents enter free slots in the order given and leave them when finished. A step takes the open documents with
    the most chunks to come, one chunk each, as many as fit: a long document is a long chain of steps, and begun late
    it would run on alone. So that it is not begun late, a share of every step goes to the documents nearest to their
    end while others wait for their slots.

    Args:
        targets_N: targets of each document of the stream.
        documents: indices into ``targets_N``, taken lazily; documents without targets are passed over.
        plan: chunks and windows.
        slots: documents open at a time.
        rows: most rows of a step; at least ``plan.window_rows``.
        together: most documents of a step.
    """
    waiting = (document for document in documents if targets_N[document] > 0)
    ending = rows // ENDING_SHARE
    document_P = np.full(slots, -1, dtype=np.int64)
    chunk_P = np.zeros(slots, dtype=np.int64)
    chunks_P = np.zeros(slots, dtype=np.int64)
    while True:
        for slot in np.flatnonzero(document_P < 0):
            if (document := next(waiting, None)) is None:
                ending = 0
                break
            document_P[slot], chunk_P[slot] = document, 0
            chunks_P[slot] = plan.chunks(targets_N[document])
        open_slots = np.flatnonzero(document_P >= 0)
        if not len(open_slots):
            return
        longest_first = open_slots[np.argsort(-(chunks_P - chunk_P)[open_slots], kind="stable")]
        rows_P = plan.rows(chunk_P)
        leaving = _that_fit(longest_first[::-1], rows_P, ending, together)
        others = longest_first[~np.isin(longest_first, leaving)]
        others = _that_fit(others, rows_P, rows - int(rows_P[leaving].sum()), together - len(leaving))
        chosen = np.concatenate([leaving, others])
        yield _step(chosen, document_P[chosen], chunk_P[chosen], targets_N, plan)
        chunk_P[chosen] += 1
        document_P[chosen[chunk_P[chosen] == chunks_P[chosen]]] = -1


def _that_fit(slots: Counts, rows_P: Counts, rows: int, together: int) -> Counts:
    """The first of ``slots`` whose next chunks go into so many rows, at most ``together``; others are left out."""
    chosen, left = list[int](), rows
    for slot in slots.tolist():
        if len(chosen) == together or left <= 0:
            break
        if (needed := int(rows_P[slot])) <= left:
            chosen.append(slot)
            left -= needed
    return np.array(chosen, dtype=np.int64)


def _step(slots: Counts, documents: Counts, chunks: Counts, targets_N: Counts, plan: WindowPlan) -> Step:
    targets, start, stop = targets_N[documents], chunks * plan.chunk, (chunks + 1) * plan.chunk
    first = start if plan.cached else np.maximum(stop - plan.window, 0)
    return Step(
        slots=slots,
        documents=documents,
        first=first,
        length=np.minimum(stop, targets) - first,
        rows=plan.rows(chunks),
        row=start - first,
        count=np.minimum(stop, targets) - start,
        fresh=chunks == 0,
        trains=stop < targets,
    )
