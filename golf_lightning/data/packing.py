"""From tokens to packed batches of constant shape, for training and for validation."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from golf_lightning.data.batch import IGNORED, PackedBatch
from golf_lightning.data.shards import Tokens
from golf_lightning.data.stream import TokenStream
from golf_lightning.errors import GolfError

Ints = npt.NDArray[np.int64]


@dataclass(kw_only=True)
class PackingConfig:
    """The constant shape of a packed batch.

    Args:
        tokens: tokens in one micro-batch of one rank.
        max_seqlen: longest segment in tokens; longer documents are split.
        max_segments: most segments in a batch. FlashAttention-4 needs a second kernel beyond 256.
    """

    tokens: int = 98_304
    max_seqlen: int = 2048
    max_segments: int = 256

    def __post_init__(self) -> None:
        if self.max_seqlen < 1:
            raise GolfError(f"max_seqlen is {self.max_seqlen}; it must be at least 1 token.")
        if self.tokens < self.max_seqlen:
            raise GolfError(
                f"A batch of {self.tokens} tokens does not hold one segment of {self.max_seqlen}; "
                "raise the batch's tokens or lower max_seqlen."
            )
        if self.max_segments < -(-self.tokens // self.max_seqlen):
            raise GolfError(
                f"max_segments {self.max_segments} times {self.max_seqlen} tokens cannot fill {self.tokens}; raise it."
            )


def segment_bounds(starts: Ints, stop: int, max_seqlen: int) -> Ints:
    """Bounds of the segments of documents that start at ``starts`` (the first at its lowest) and end at ``stop``.

    Documents longer than ``max_seqlen`` are split at every ``max_seqlen`` tokens from their start. Returns ``[S + 1]``.
    """
    ends = np.append(starts[1:], stop)
    pieces = -(-(ends - starts) // max_seqlen)
    document = np.repeat(np.arange(len(starts)), pieces)
    piece = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.append(starts[document] + piece * max_seqlen, stop)


def pack_training_run(stream: TokenStream, position: int, config: PackingConfig, bos_id: int) -> PackedBatch:
    """The batch that starts at ``position`` of the stream.

    If the run holds more segments than fit, the rest of the buffer is padding and the next batch starts at the first
    token left out, so nothing is lost and no shape changes.
    """
    window, joints = stream.read(position, config.tokens + 1)
    inputs = window[:-1]
    targets = window[1:].astype(np.int64)
    begins = inputs == bos_id
    begins[0] = True
    for joint in joints:
        if window[joint] != bos_id:
            targets[joint - 1] = IGNORED
        if joint < config.tokens:
            begins[joint] = True
    bounds = segment_bounds(np.flatnonzero(begins), config.tokens, config.max_seqlen)[: config.max_segments + 1]
    used = int(bounds[-1])
    return _batch(inputs[:used], targets[:used], bounds, config, next_position=position + used)


def training_batches(
    stream: TokenStream, config: PackingConfig, *, bos_id: int, position: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[PackedBatch]:
    """Endless micro-batches of one rank.

    Micro-batches are cut from the stream one after the other and dealt to the ranks in turn, so 8 ranks see the same
    global batches as one rank that accumulates 8. ``next_position`` is where the whole round of ranks ends: a run saved
    after it continues from there with any number of ranks.
    """
    while True:
        mine = None
        for turn in range(world_size):
            batch = pack_training_run(stream, position, config, bos_id)
            position = batch.next_position
            if turn == rank:
                mine = batch
        assert mine is not None, f"rank {rank} of {world_size}"
        mine.next_position = position
        yield mine


class ValidationBatches:
    """Every target of a split exactly once, in document order, in batches of constant shape.

    Documents are split at ``max_seqlen`` without overlap. A segment is never cut by a batch's end, so scores do not
    depend on the batch size. With several ranks, batches are dealt in turn.

    Args:
        tokens: ``[N]`` the whole split; the first token is a BOS.
        config: shape of a batch.
        bos_id: the token that starts a document.
        rank: this rank.
        world_size: number of ranks.
    """

    def __init__(
        self, tokens: Tokens, config: PackingConfig, *, bos_id: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.tokens = tokens
        self.config = config
        bounds = segment_bounds(np.flatnonzero(tokens == bos_id), len(tokens), config.max_seqlen)
        self.batches = _fill(bounds, config)[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PackedBatch]:
        for bounds in self.batches:
            start, stop = int(bounds[0]), int(bounds[-1])
            inputs = self.tokens[start:stop]
            targets = np.full(stop - start, IGNORED, dtype=np.int64)
            following = self.tokens[start + 1 : stop + 1]  # the split's last token has no target
            targets[: len(following)] = following
            yield _batch(inputs, targets, bounds - start, self.config)


def _fill(bounds: Ints, config: PackingConfig) -> list[Ints]:
    """Cut segment bounds into batches that hold as many whole segments as fit, in order."""
    batches, first = [], 0
    while first < len(bounds) - 1:
        last = int(np.searchsorted(bounds, bounds[first] + config.tokens, side="right")) - 1
        last = min(last, first + config.max_segments)
        batches.append(bounds[first : last + 1])
        first = last
    return batches


def _batch(inputs: Tokens, targets: Ints, bounds: Ints, config: PackingConfig, next_position: int = 0) -> PackedBatch:
    tokens = torch.zeros(config.tokens, dtype=torch.int64)
    tokens[: len(inputs)] = torch.from_numpy(inputs.astype(np.int64))
    padded_targets = torch.full((config.tokens,), IGNORED, dtype=torch.int64)
    padded_targets[: len(targets)] = torch.from_numpy(targets)
    cu_seqlens = torch.full((config.max_segments + 1,), int(bounds[-1]), dtype=torch.int32)
    cu_seqlens[: len(bounds)] = torch.from_numpy(bounds.astype(np.int32))
    return PackedBatch(tokens, padded_targets, cu_seqlens, next_position)
