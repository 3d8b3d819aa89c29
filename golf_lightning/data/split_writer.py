"""Encoded documents to the shards of one split."""

from pathlib import Path
from typing import IO

import numpy as np

from golf_lightning.data.encode import EncodedDocument
from golf_lightning.data.manifest import ShardEntry, SplitEntry
from golf_lightning.data.shards import Split, Tokens, shard_name, write_shard
from golf_lightning.errors import GolfError
from golf_lightning.files import sha256_of


class SplitWriter:
    """Collects encoded documents into the shards of one split.

    Args:
        folder: where the shards go.
        split: ``train`` or ``val``.
        shard_tokens: most tokens of a shard; a longer document has a shard of its own.
        hashes: text file that gets one line of SHA-256 per document.
    """

    def __init__(self, folder: Path, split: Split, shard_tokens: int, hashes: IO[str]) -> None:
        self.folder = folder
        self.split = split
        self.shard_tokens = shard_tokens
        self.hashes = hashes
        self.entry = SplitEntry(documents=0, tokens=0, table_bytes=0)
        self._source_bytes = 0
        self._waiting: list[Tokens] = []
        self._waiting_tokens = 0

    def add(self, document: EncodedDocument) -> None:
        """Append one document."""
        if self._waiting and self._waiting_tokens + len(document.tokens) > self.shard_tokens:
            self._flush()
        self._waiting.append(document.tokens)
        self._waiting_tokens += len(document.tokens)
        self.hashes.write(document.text_hash.hex() + "\n")
        self.entry.documents += 1
        self.entry.tokens += len(document.tokens)
        self.entry.table_bytes += document.table_bytes
        self._source_bytes += document.source_bytes

    def finish(self) -> SplitEntry:
        """Write the last shard and return the split's description.

        Raises:
            GolfError: there was no document.
        """
        if not self.entry.documents:
            raise GolfError(f"No {self.split} documents are left to write; give it text that is not empty.")
        self._flush()
        self.entry.source_bytes = self._source_bytes
        return self.entry

    def _flush(self) -> None:
        path = self.folder / shard_name(self.split, len(self.entry.shards))
        write_shard(path, np.concatenate(self._waiting))
        self.entry.shards.append(ShardEntry(name=path.name, tokens=self._waiting_tokens, sha256=sha256_of(path)))
        self._waiting = []
        self._waiting_tokens = 0
