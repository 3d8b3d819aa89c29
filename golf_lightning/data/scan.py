"""One pass over the shards of a split that counts everything a manifest states."""

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.shards import Tokens
from golf_lightning.data.tokenizer import BOS

CHUNK_TOKENS = 1 << 23


@dataclass(kw_only=True, slots=True)
class SplitScan:
    """What the shards of a split hold.

    Attributes:
        documents: number of BOS tokens.
        tokens: number of tokens.
        table_bytes: bytes of all tokens by the byte table; ``None`` without a table or with tokens beyond it.
        largest_token: largest token id.
        starts_with_bos: the first token is BOS.
        document_hashes: hash of each document's tokens, BOS included, as by ``encode.token_hash``.
    """

    documents: int = 0
    tokens: int = 0
    table_bytes: int | None = 0
    largest_token: int = 0
    starts_with_bos: bool = False
    document_hashes: set[bytes] = field(default_factory=set)


def scan_split(shards: Iterable[Tokens], table: ByteTable | None) -> SplitScan:
    """Read the shards of a split in order, as one stream: a document may run from one shard into the next.

    Args:
        shards: ``[N_i]`` uint16 tokens of each shard.
        table: counts the bytes.
    """
    scan = SplitScan(table_bytes=None if table is None else 0)
    previous: int | None = None
    document: hashlib.blake2b | None = None
    for chunk in (shard[at : at + CHUNK_TOKENS] for shard in shards for at in range(0, len(shard), CHUNK_TOKENS)):
        scan.largest_token = max(scan.largest_token, int(chunk.max()))
        if table is not None and scan.table_bytes is not None:
            fits = scan.largest_token < table.vocab_size
            scan.table_bytes = scan.table_bytes + table.total(chunk, previous) if fits else None
        if previous is None:
            scan.starts_with_bos = int(chunk[0]) == BOS
        previous = int(chunk[-1])
        scan.tokens += len(chunk)

        data = np.ascontiguousarray(chunk, dtype="<u2").data
        starts = np.flatnonzero(chunk == BOS).tolist()
        scan.documents += len(starts)
        if document is not None:
            document.update(data[: starts[0] if starts else len(chunk)])
        for start, end in itertools.pairwise([*starts, len(chunk)]):
            if document is not None:
                scan.document_hashes.add(document.digest())
            document = hashlib.blake2b(data[start:end], digest_size=16)
    if document is not None:
        scan.document_hashes.add(document.digest())
    return scan
