"""Scoring packed documents once, without adaptation."""

from collections.abc import Iterable

from golf_lightning.data.batch import PackedBatch
from golf_lightning.evaluation.bpb import BitsPerByte, Score
from golf_lightning.model.gpt import GPT


def score_packed(model: GPT, batches: Iterable[PackedBatch], metric: BitsPerByte) -> Score:
    """Score every target of ``batches``; with several ranks, each gives its own batches and all get the whole sums.

    Args:
        model: the model, on its device.
        batches: packed batches on the CPU.
        metric: reset first; on the model's device.
    """
    metric.reset()
    device = model.embedding.device
    for batch in batches:
        batch = batch.to(device)
        metric.update(model(batch.tokens, batch.targets, batch.cu_seqlens), batch.tokens, batch.targets)
    return metric.score()
