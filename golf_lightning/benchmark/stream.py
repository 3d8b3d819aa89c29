"""Batches for timing: the contest's mix of document lengths, or a prepared folder's own."""

import math
from itertools import islice
from pathlib import Path

import torch

from golf_lightning.data.batch import PackedBatch
from golf_lightning.data.datamodule import GolfDataModule
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig

SEGMENTS = 256
"""Most segments in a batch where no configuration says; FlashAttention-4 compiles a second kernel beyond it."""
MEDIAN_TOKENS, SIGMA = 475, 1.03
"""Log-normal lengths of FineWeb documents in tokens: about 148 of them in 98,304 tokens."""


def random_stream(
    config: GPTConfig, tokens: int, count: int, *, max_segments: int = SEGMENTS, seed: int = 0
) -> list[PackedBatch]:
    """``count`` batches of ``tokens`` random tokens in documents of the contest's lengths.

    Documents are cut at batch ends and at ``config.max_seqlen``. ``cu_seqlens`` has ``max_segments + 1`` entries.

    Raises:
        GolfError: the batches need more segments.
    """
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for _ in range(count):
        bounds = [0]
        while bounds[-1] < tokens:
            length = round(MEDIAN_TOKENS * math.exp(SIGMA * float(torch.randn((), generator=generator))))
            stop = min(bounds[-1] + max(length, 1), tokens)
            bounds += [*range(bounds[-1] + config.max_seqlen, stop, config.max_seqlen), stop]
        documents.append((bounds, torch.randint(0, config.vocab_size, (tokens + 1,), generator=generator)))
    needed = max(len(bounds) for bounds, _ in documents) - 1
    if needed > max_segments:
        raise GolfError(
            f"{tokens} tokens in documents of the contest's lengths are up to {needed} segments, and data.max_segments "
            f"is {max_segments}; give --data.max_segments {needed} or more, or fewer --data.train_tokens."
        )
    return [
        PackedBatch(
            text[:-1],
            text[1:],
            torch.tensor(bounds + [tokens] * (max_segments + 1 - len(bounds)), dtype=torch.int32),
        )
        for bounds, text in documents
    ]


def folder_stream(
    folder: Path, config: GPTConfig, tokens: int, count: int, *, max_segments: int = SEGMENTS
) -> list[PackedBatch]:
    """The first ``count`` training batches of a prepared folder.

    Raises:
        GolfError: the folder is missing or was made with another vocabulary.
    """
    data = GolfDataModule(
        str(folder), train_tokens=tokens, val_tokens=tokens, max_seqlen=config.max_seqlen, max_segments=max_segments
    )
    if data.tokenizer.vocab_size != config.vocab_size:
        raise GolfError(
            f"The tokenizer of {folder} has {data.tokenizer.vocab_size} pieces but the model's vocab_size is "
            f"{config.vocab_size}; give the configuration that belongs to the data."
        )
    return list(islice(data.calibration_batches(count), count))
