"""Texts to tokens in several processes, in an order that does not depend on their number."""

import collections
import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.interrupts import signals_blocked
from golf_lightning.data.readers import Document
from golf_lightning.data.shards import Tokens
from golf_lightning.data.tokenizer import BOS, Tokenizer, replace_space_marks
from golf_lightning.errors import GolfError

BATCH_CHARACTERS = 1 << 18

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(kw_only=True, slots=True)
class EncodedDocument:
    """One document ready for a shard.

    Attributes:
        tokens: ``[N]`` uint16, BOS first.
        text_hash: SHA-256 of the UTF-8 text, 32 bytes.
        token_hash: :func:`token_hash` of the tokens.
        source_bytes: UTF-8 bytes of the text.
        table_bytes: bytes of the tokens by the byte table.
        replaced_marks: literal U+2581 characters that were replaced by spaces before all of this.
    """

    tokens: Tokens
    text_hash: bytes
    token_hash: bytes
    source_bytes: int
    table_bytes: int
    replaced_marks: int


class TextBatch(NamedTuple):
    """Texts for one task of a worker, and how many bytes of the inputs have been read after them."""

    texts: list[str]
    position: int


class EncodedBatch(NamedTuple):
    """The documents of one :class:`TextBatch`."""

    documents: list[EncodedDocument]
    position: int


def token_hash(tokens: Tokens) -> bytes:
    """16-byte BLAKE2b hash of a document's tokens: equal tokens, equal hash."""
    return hashlib.blake2b(np.ascontiguousarray(tokens, dtype="<u2").data, digest_size=16).digest()


def batches(documents: Iterable[Document]) -> Iterator[TextBatch]:
    """Group documents into tasks of about a quarter of a million characters."""
    texts: list[str] = []
    characters = position = 0
    for text, position in documents:
        texts.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield TextBatch(texts, position)
            texts, characters = [], 0
    if texts:
        yield TextBatch(texts, position)


def encode_batch(tokenizer_path: Path, batch: TextBatch) -> EncodedBatch:
    """Encode the texts of a batch with the tokenizer in a file."""
    tokenizer, table = _load(tokenizer_path)
    return EncodedBatch([_encode(text, tokenizer, table) for text in batch.texts], batch.position)


def _encode(text: str, tokenizer: Tokenizer, table: ByteTable) -> EncodedDocument:
    text, replaced = replace_space_marks(text)
    source = text.encode("utf-8")
    tokens = np.concatenate((np.array([BOS], dtype=np.uint16), tokenizer.encode(text)))
    return EncodedDocument(
        tokens=tokens,
        text_hash=hashlib.sha256(source).digest(),
        token_hash=token_hash(tokens),
        source_bytes=len(source),
        table_bytes=table.total(tokens),
        replaced_marks=replaced,
    )


@functools.lru_cache(maxsize=1)
def _load(tokenizer_path: Path) -> tuple[Tokenizer, ByteTable]:
    tokenizer = Tokenizer(tokenizer_path)
    return tokenizer, ByteTable.from_tokenizer(tokenizer)


def available_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Results of ``function`` in the order of ``items``, computed ahead by ``workers`` processes.

    Only a few items per worker are read ahead, so the inputs need not fit in memory. One worker means this process.
    Closing the generator stops the workers.

    Raises:
        GolfError: a worker was killed from outside.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # forked children would inherit the threads of the progress bar and of torch in an unknown state
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            # Ctrl-C reaches every process of the terminal; only this one is to act on it. A worker that starts just
            # now must get all it reads from this process, so SIGTERM waits as well.
            with signals_blocked(signal.SIGINT, signal.SIGTERM):
                waiting.append(pool.submit(function, item))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise GolfError(
            "A worker process was killed, most likely for want of memory; try again with fewer --workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    # an idle worker does not notice that the parent was killed, and would wait for work forever
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # it was held back while this process started
