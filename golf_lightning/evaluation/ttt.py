"""Document test-time training: score a chunk, learn from it, score the next; every document on its own.

The method is the document-independent LoRA test-time training of the parameter-golf records (PR #1536, #1530 v2), with
documents in stream order and noise that belongs to the document. A chunk's scores are fixed before anything has learned
from it, each target is scored once, and nothing passes from one document to another.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.scorer import Scorer, TokenBytes
from golf_lightning.evaluation.scores import DocumentScores, ScoreProgress
from golf_lightning.evaluation.slots import schedule
from golf_lightning.model.gpt import GPT

log = logging.getLogger(__name__)


def score_documents(
    model: GPT,
    stream: DocumentStream,
    config: TTTConfig,
    *,
    token_bytes: TokenBytes,
    progress: Callable[[ScoreProgress], None] | None = None,
    interval_seconds: float = 5.0,
    elapsed_seconds: float = 0.0,
    keep_target_nats: bool = False,
    documents: Sequence[int] | None = None,
) -> DocumentScores:
    """Score every document once, learning from each chunk after its scores are fixed.

    Per chunk: one forward pass over the window that ends with it; its scores; then one AdamW step of the document's
    adapters on the chunk's mean loss from the same pass. The last chunk is not learned from. The model is left as it
    was, except that its rotary table covers ``config.window`` positions.

    Args:
        model: runs on its own device, in its own compute dtype, with recurrence as it is set.
        stream: documents of the split; ``config`` may take a part of them.
        config: see :class:`~golf_lightning.evaluation.config.TTTConfig`.
        token_bytes: bytes of text of each target.
        progress: called about every ``interval_seconds`` and once at the end; each call waits for the device.
        interval_seconds: time between calls of ``progress`` and checks of the budget.
        elapsed_seconds: evaluation clock that has passed already, for the budget's projection.
        keep_target_nats: keep the score of each target.
        documents: indices of the documents to score, in the order in which they enter; all in stream order by default.

    Returns:
        Sums by document; for documents that were not asked for they are 0.

    Raises:
        GolfError: a token is outside the model's vocabulary, or a score is not finite.
    """
    stream = stream.part(max_documents=config.max_documents, fraction=config.fraction)
    order = range(len(stream)) if documents is None else documents
    assert len(set(order)) == len(order), "a document must not be scored twice"
    # Lightning tests under inference mode, where nothing can be learned.
    with torch.inference_mode(False), frozen(model):
        model.extend_positions(config.window)
        scorer = Scorer(model, stream, config, token_bytes, keep_target_nats=keep_target_nats)
        watch = _Watch(scorer, order, progress, interval_seconds, elapsed_seconds)
        for steps in schedule(stream.targets, order, config.plan, slots=config.slots, rows=config.rows):
            for step in steps:
                scorer.run(step)
            watch.look()
        return _collect(scorer, order, watch.report().seconds)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter asks for a gradient; afterwards each is as it was."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


class _Watch:
    """Reports progress, and warns once when the evaluation clock will not suffice."""

    def __init__(
        self,
        scorer: Scorer,
        order: Sequence[int],
        progress: Callable[[ScoreProgress], None] | None,
        interval_seconds: float,
        elapsed_seconds: float,
    ) -> None:
        self._scorer, self._progress, self._interval = scorer, progress, interval_seconds
        self._elapsed, self._budget = elapsed_seconds, scorer.config.budget_seconds
        targets_N = scorer.stream.targets[np.asarray(order, dtype=np.int64)]
        self._documents, self._targets = int(np.count_nonzero(targets_N)), int(targets_N.sum())
        self._work = int(scorer.config.plan.work(targets_N).sum())
        self._start = self._last = time.monotonic()

    def look(self) -> None:
        """Report if it is time to: the scores are on the device, and reading them waits for it."""
        if time.monotonic() - self._last >= self._interval:
            self.report()
            self._last = time.monotonic()

    def report(self) -> ScoreProgress:
        scorer = self._scorer
        nats = float(scorer.nats.sum())
        seconds = time.monotonic() - self._start
        now = ScoreProgress(
            documents=scorer.documents_done,
            documents_total=self._documents,
            targets=scorer.targets_done,
            targets_total=self._targets,
            bytes=scorer.bytes_done,
            nats=nats,
            seconds=seconds,
            projected_seconds=seconds * self._work / scorer.work_done if scorer.work_done else 0.0,
        )
        if self._progress is not None:
            self._progress(now)
        expected = self._elapsed + now.projected_seconds
        if self._budget is not None and expected > self._budget:
            log.warning(
                "Scoring will take the evaluation clock to about %.0f s, over the budget of %.0f s; "
                "use larger chunks, a shorter window or a lower rank.",
                expected,
                self._budget,
            )
            self._budget = None
        return now


def _collect(scorer: Scorer, order: Sequence[int], seconds: float) -> DocumentScores:
    stream = scorer.stream
    asked = np.zeros(len(stream), dtype=np.bool_)
    asked[np.asarray(order, dtype=np.int64)] = True
    nats, counts = scorer.nats.cpu(), scorer.counts.cpu()
    assert np.array_equal(counts.numpy(), stream.targets * asked), "a target was not scored exactly once"
    if broken := int((~nats.isfinite()).sum()):
        raise GolfError(
            f"{broken} documents have no finite score; the model's weights are broken, score another model."
        )
    before = scorer.bytes_before
    kept = scorer.target_nats
    return DocumentScores(
        nats=nats,
        targets=counts,
        bytes=torch.from_numpy((before[stream.starts + stream.targets] - before[stream.starts]) * asked),
        partial=stream.partial or not asked.all(),
        seconds=seconds,
        target_nats=None if kept is None else kept[:-1].cpu(),
    )
