"""Who runs when: documents in slots, their chunks in rounds, rounds cut into steps of one window length.

All of it follows from the documents' lengths, so it is settled on the host and nothing waits for the device. Nothing
here reaches a score: a document's scores depend on its own chunks alone, in their order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# S documents of a step, C targets of a chunk, N documents of the split

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowPlan:
    """How a document is cut into chunks and windows.

    Chunk c holds targets c*C up to (c+1)*C and is scored by one pass over the inputs from ``max(0, (c+1)*C - window)``
    to the chunk's end. The start is a full chunk's even where the document ends earlier, so that it says nothing about
    the document's length.

    Args:
        chunk: targets of a chunk.
        window: longest pass over one document, in tokens; at least ``chunk``.
        widths: number of lengths to which windows are padded.
    """

    chunk: int
    window: int
    widths: int

    def width(self, chunk: int) -> int:
        """Padded length of the window of a document's ``chunk``-th chunk, in tokens."""
        unit = -(-self.window // self.widths)
        used = min((chunk + 1) * self.chunk, self.window)
        return min(-(-used // unit) * unit, self.window)

    def chunks(self, targets: int) -> int:
        """Chunks of a document with so many targets."""
        return -(-targets // self.chunk)

    def work(self, targets_N: Counts) -> Counts:
        """Tokens of all padded windows of each document, ``[N]``: what scoring it costs."""
        growing = self.chunks(self.window)
        cumulative = np.cumsum([0, *(self.width(c) for c in range(growing))], dtype=np.int64)
        chunks_N = -(-targets_N // self.chunk)
        return cumulative[np.minimum(chunks_N, growing)] + np.maximum(chunks_N - growing, 0) * self.window


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One forward pass: the next chunk of S documents, in windows padded to one length. Arrays are ``[S]`` int64.

    Attributes:
        width: padded length of every window, in tokens.
        slots: where each document's state lives.
        documents: index of each document in the stream.
        first: position in the document of the window's first token.
        length: tokens of the window before padding.
        row: row of the window that predicts the chunk's first target.
        count: targets of the chunk.
        fresh: bool, the document's first chunk: its slot must be reset.
        trains: bool, further chunks follow: the document learns from this one.
    """

    width: int
    slots: Counts
    documents: Counts
    first: Counts
    length: Counts
    row: Counts
    count: Counts
    fresh: npt.NDArray[np.bool_]
    trains: npt.NDArray[np.bool_]


def schedule(
    targets_N: Counts, documents: Iterable[int], plan: WindowPlan, *, slots: int, rows: int
) -> Iterator[list[Step]]:
    """Rounds of steps until every document is done.

    Documents enter free slots in the order given. In a round every open document advances by one chunk; documents
    whose windows have one padded length run together, as many as ``rows`` tokens allow. A finished document leaves its
    slot to the next one while the others go on.

    Args:
        targets_N: targets of each document of the stream.
        documents: indices into ``targets_N``, taken lazily; documents without targets are passed over.
        plan: chunks and windows.
        slots: documents open at a time.
        rows: most tokens of a step; at least ``plan.window``.
    """
    waiting = (document for document in documents if targets_N[document] > 0)
    open_documents: dict[int, tuple[int, int]] = {}
    while True:
        for slot in range(slots):
            if slot not in open_documents and (document := next(waiting, None)) is not None:
                open_documents[slot] = (document, 0)
        if not open_documents:
            return
        yield list(_round(open_documents, targets_N, plan, rows))
        for slot, (document, chunk) in list(open_documents.items()):
            if chunk + 1 < plan.chunks(int(targets_N[document])):
                open_documents[slot] = (document, chunk + 1)
            else:
                del open_documents[slot]


def _round(
    open_documents: dict[int, tuple[int, int]], targets_N: Counts, plan: WindowPlan, rows: int
) -> Iterator[Step]:
    by_width: dict[int, list[tuple[int, int, int]]] = {}
    for slot, (document, chunk) in sorted(open_documents.items()):
        by_width.setdefault(plan.width(chunk), []).append((slot, document, chunk))
    for width, members in sorted(by_width.items()):
        together = rows // width
        for part in np.array_split(np.array(members, dtype=np.int64), -(-len(members) // together)):
            yield _step(part, targets_N, plan, width)


def _step(members: Counts, targets_N: Counts, plan: WindowPlan, width: int) -> Step:
    slots, documents, chunks = members.T.copy()
    targets, start, stop = targets_N[documents], chunks * plan.chunk, (chunks + 1) * plan.chunk
    first = np.maximum(stop - plan.window, 0)
    return Step(
        width=width,
        slots=slots,
        documents=documents,
        first=first,
        length=np.minimum(stop, targets) - first,
        row=start - first,
        count=np.minimum(stop, targets) - start,
        fresh=chunks == 0,
        trains=stop < targets,
    )
