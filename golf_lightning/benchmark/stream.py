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
"""Most documents in a batch; FlashAttention-4 compiles a second kernel beyond it."""
MEDIAN_TOKENS, SIGMA = 475, 1.03
"""Log-normal lengths of FineWeb documents in tokens: about 148 of them in 98,304 tokens."""


def random_stream(config: GPTConfig, tokens: int, count: int, *, seed: int = 0) -> list[PackedBatch]:
    """``count`` batches of ``tokens`` random tokens in documents of the contest's lengths.

    Documents are cut at batch ends and at ``config.max_seqlen``. ``cu_seqlens`` has one fixed length.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        bounds = [0]
        while bounds[-1] < tokens:
            length = round(MEDIAN_TOKENS * math.exp(SIGMA * float(torch.randn((), generator=generator))))
            stop = min(bounds[-1] + max(length, 1), tokens)
            bounds += [*range(bounds[-1] + config.max_seqlen, stop, config.max_seqlen), stop]
        assert len(bounds) <= SEGMENTS + 1, "too many documents for the fixed number of segments"
        text = torch.randint(0, config.vocab_size, (tokens + 1,), generator=generator)
        cu_seqlens = torch.tensor(bounds + [tokens] * (SEGMENTS + 1 - len(bounds)), dtype=torch.int32)
        batches.append(PackedBatch(text[:-1], text[1:], cu_seqlens))
    return batches


def folder_stream(folder: Path, config: GPTConfig, tokens: int, count: int) -> list[PackedBatch]:
    """The first ``count`` training batches of a prepared folder.

    Raises:
        GolfError: the folder is missing or was made with another vocabulary.
    """
    data = GolfDataModule(
        str(folder), train_tokens=tokens, val_tokens=tokens, max_seqlen=config.max_seqlen, max_segments=SEGMENTS
    )
    if data.tokenizer.vocab_size != config.vocab_size:
        raise GolfError(
            f"The tokenizer of {folder} has {data.tokenizer.vocab_size} pieces but the model's vocab_size is "
            f"{config.vocab_size}; give the configuration that belongs to the data."
        )
    return list(islice(data.calibration_batches(count), count))
