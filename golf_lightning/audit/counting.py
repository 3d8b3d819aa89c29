"""Targets and bytes, counted again from the files with other means than the project's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
import torch

from golf_lightning.audit.report import Check
from golf_lightning.audit.subject import Subject, TokenBytes, Tokens
from golf_lightning.data.manifest import Manifest, SplitEntry
from golf_lightning.data.tokenizer import BOS
from golf_lightning.errors import GolfError
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.scores import DocumentScores

# N tokens, V vocabulary

DECODED_TOKENS = 1_000_000
"""Tokens that are turned back into text to count its bytes; whole documents, evenly spread over the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What a split holds, as counted from its raw files.

    Attributes:
        documents: BOS tokens.
        tokens: tokens.
        table_bytes: bytes of text that the tokens stand for.
    """

    documents: int
    tokens: int
    table_bytes: int


class PieceBytes:
    """Bytes of text by the contest's rule, read off the pieces in another way than the project's table.

    A piece counts the UTF-8 bytes of its text with spaces for all marks; from this comes off the space of a piece whose
    previous token is no text.
    """

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        ids, kinds = range(tokenizer.vocab_size()), (tokenizer.is_control, tokenizer.is_unknown, tokenizer.is_unused)
        self.no_text = np.array([any(kind(i) for kind in kinds) for i in ids])
        texts = [tokenizer.id_to_piece(i).replace("\u2581", " ") for i in ids]
        sizes = [1 if tokenizer.is_byte(i) else len(text.encode()) for i, text in enumerate(texts)]
        self.size = np.where(self.no_text, 0, sizes).astype(np.int64)
        marked = np.array([text.startswith(" ") and not tokenizer.is_byte(i) for i, text in enumerate(texts)])
        self.marked = marked & ~self.no_text

    def total(self, tokens: npt.NDArray[np.integer], previous: int = BOS) -> int:
        """Bytes of a run of tokens that follows the token ``previous``."""
        follows_no_text = self.no_text[np.append(previous, tokens[:-1])]
        return int(self.size[tokens].sum()) - int((self.marked[tokens] & follows_no_text).sum())


def raw_tokens(path: Path) -> Tokens:
    """The tokens of a shard, ``[N]`` uint16, read as plain 16-bit words.

    Raises:
        GolfError: the header's count is not that of the file.
    """
    words = np.fromfile(path, dtype="<u2")
    count = int(words[:512].view("<i4")[2]) if len(words) >= 512 else -1
    if len(words) - 512 != count:
        raise GolfError(f"{path} holds {len(words) - 512} tokens and its header says {count}; prepare the data again.")
    return words[512:]


def count_split(paths: Sequence[Path], pieces: PieceBytes) -> Totals:
    """Count a split's documents, tokens and bytes."""
    documents = tokens = table_bytes = 0
    previous = BOS
    for path in paths:
        shard = raw_tokens(path)
        documents += int((shard == BOS).sum())
        tokens += len(shard)
        table_bytes += pieces.total(shard, previous)
        previous = int(shard[-1])
    return Totals(documents=documents, tokens=tokens, table_bytes=table_bytes)


def check_targets(subject: Subject, scores: DocumentScores, pieces: PieceBytes) -> Check:
    """Whether every target was scored once, in its place, and with the bytes of its own text.

    Args:
        subject: what is audited.
        scores: of the small split, with the scores of its targets.
        pieces: counts bytes.
    """
    stream, faults = subject.stream, []
    assert scores.target_nats is not None
    nats, counted = scores.target_nats.double().cpu(), scores.targets.cpu().numpy()
    if len(nats) != stream.total_targets or not bool(nats.isfinite().all()):
        faults.append(f"{int(nats.isfinite().sum())} scores for {stream.total_targets} targets")
    if not np.array_equal(counted, stream.targets):
        faults.append(f"{counted.sum()} targets counted of {stream.total_targets}")
    sums = [float(part.sum()) for part in torch.split(nats, stream.targets.tolist())] if not faults else []
    if sums and not np.allclose(sums, scores.nats.cpu().numpy(), rtol=1e-6, atol=1e-9):
        faults.append("sums of documents that are not the sums of their targets in the stream's order")
    expected = [pieces.total(stream[i][1:], int(stream[i][0])) for i in range(len(stream))]
    if scores.bytes.cpu().tolist() != expected:
        faults.append(f"{scores.total_bytes} bytes counted of {sum(expected)}")
    if scores.partial:
        faults.append("a score that calls itself partial")
    if (order := subject.config.order) != "stream":
        faults.append(f"documents enter in the order '{order}', not as the split has them")
    return Check(
        name="every target once, in order",
        passed=not faults,
        measured="; ".join(faults) or f"{stream.total_targets:,} targets, {sum(expected):,} bytes",
        expected="each target of each document once, in stream order",
        sentence=f"Of {len(stream)} documents the scores of all targets were kept: one each, in the stream's order, "
        "adding up to the sum of its document; bytes were counted a second time from the tokenizer's pieces.",
        figures={"targets": stream.total_targets, "bytes": sum(expected), "faults": faults},
    )


def check_text_bytes(tokens: Tokens, tokenizer: sentencepiece.SentencePieceProcessor, token_bytes: TokenBytes) -> Check:
    """Whether the bytes counted for documents are those of their decoded text.

    Args:
        tokens: ``[N]`` the validation split.
        tokenizer: made the tokens.
        token_bytes: bytes of each target, as the run under audit counts them.
    """
    checked = counted = actual = wrong = 0
    for document in _spread(DocumentStream(tokens, bos_id=BOS), DECODED_TOKENS):
        text = [int(token) for token in document if token != BOS]
        if any(map(tokenizer.is_unknown, text)):  # they stand for no bytes by the rule, and for a mark in the text
            continue
        found = int(token_bytes(document[:-1], document[1:]).sum())
        size = len(tokenizer.decode(text).encode())
        checked, counted, actual, wrong = checked + 1, counted + found, actual + size, wrong + (found != size)
    return Check(
        name="bytes of the text",
        passed=wrong == 0 and checked > 0,
        measured=f"{counted:,} bytes counted, {actual:,} in the text; {wrong:,} of {checked:,} documents differ",
        expected="no document differs",
        sentence=f"{checked:,} whole documents of validation were turned back into text and its UTF-8 bytes counted. A "
        "space counted twice, a byte piece counted as three, or a fixed number of bytes per token shows here.",
        figures={"documents": checked, "counted_bytes": counted, "text_bytes": actual, "documents_that_differ": wrong},
    )


def _spread(stream: DocumentStream, tokens: int) -> Iterator[Tokens]:
    """Whole documents, evenly spread over the stream, with together about so many tokens."""
    every = max(1, -(-len(stream.tokens) // tokens))
    return (stream[i] for i in range(0, len(stream), every) if stream.targets[i])


def check_totals(totals: Totals, entry: SplitEntry, manifest: Manifest, scores: dict[str, Any] | None) -> Check:
    """Whether the manifest's totals and the run's are those of the raw files, to the last token.

    Args:
        totals: counted from the validation shards.
        entry: the manifest's validation split.
        manifest: of the data folder.
        scores: ``scores`` of the run's result by name, or ``None`` without a run.
    """
    faults = []
    for name in ("documents", "tokens", "table_bytes"):
        if (stated := getattr(entry, name)) != (found := getattr(totals, name)):
            faults.append(f"the manifest says {stated:,} {name}, the shards have {found:,}")
    if manifest.lossless and entry.source_bytes != totals.table_bytes:
        faults.append(f"the source text had {entry.source_bytes} bytes, the tokens stand for {totals.table_bytes}")
    whole = {"targets": totals.tokens - 1, "table_bytes": totals.table_bytes}
    for name, score in (scores or {}).items():
        faults += [
            f"{name} has {score[key]:,} {key}, the whole split has {value:,}"
            for key, value in whole.items()
            if score[key] != value
        ]
    return Check(
        name="totals of the split",
        passed=None if scores is None and not faults else not faults,
        measured="; ".join(faults)
        or f"{totals.tokens - 1:,} targets, {totals.table_bytes:,} bytes, {totals.documents:,} documents"
        + ("" if scores is not None else "; no run was given"),
        expected=f"{totals.tokens - 1:,} targets and {totals.table_bytes:,} bytes in every score of the run",
        sentence="The validation shards were read as plain words and counted without the project's reader and table. "
        "Every token but the first is a target, the tail included; every score of the run must have as many, and the "
        "same bytes.",
        figures={**whole, "documents": totals.documents, "faults": faults},
    )
