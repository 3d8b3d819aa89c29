"""Document test-time training: score a chunk, learn from it, score the next; every document on its own.

The method is the document-independent LoRA test-time training of the parameter-golf records (PR #1536, #1530 v2), with
documents in stream order and noise that belongs to the document. A chunk's scores are fixed before anything has learned
from it, each target is scored once, and nothing passes from one document to another unless a global phase is on.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream, Ids
from golf_lightning.evaluation.engine import Engine
from golf_lightning.evaluation.global_phase import global_sgd, restored
from golf_lightning.evaluation.journal import Journal
from golf_lightning.evaluation.scores import DocumentScores, ScoreProgress
from golf_lightning.evaluation.shapes import bounded
from golf_lightning.evaluation.slots import schedule
from golf_lightning.evaluation.watch import Watch
from golf_lightning.model.gpt import GPT

TokenBytes = Callable[[Ids, Ids], npt.NDArray[np.int64]]
"""Bytes of each target from the tokens before the targets and the targets, as ``ByteTable.count`` gives them."""


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
    documents: Iterable[int] | None = None,
    ranks: int = 1,
    journal: Journal | None = None,
) -> DocumentScores:
    """Score every document once, learning from each chunk after its scores are fixed.

    Per chunk: one forward pass; its scores; then AdamW on the document's adapters by the chunk's mean loss from the
    same pass. The last chunk is not learned from. The model is left as it was, except that its rotary table covers
    the positions that were needed. On a GPU everything is compiled and recorded on noise before the first document.

    Args:
        model: runs on its own device, in its own compute dtype, with recurrence as it is set.
        stream: documents of the split; ``config`` may take a part of them.
        config: see :class:`~golf_lightning.evaluation.config.TTTConfig`.
        token_bytes: bytes of text of each target.
        progress: called about every ``interval_seconds`` and once at the end; each call waits for the device.
        interval_seconds: time between calls of ``progress`` and checks of the budget.
        elapsed_seconds: evaluation clock that has passed already, for the budget's projection; what the journal knows
            is added.
        keep_target_nats: keep the score of each target.
        documents: indices of the documents to score, in the order in which they enter, taken as slots come free; all
            of them in ``config.order`` by default.
        ranks: processes that share the stream, for the projection of the time that is left.
        journal: where finished documents are kept, with every report of progress; those that it knows already must not
            be among ``documents``, and the sums of those that this rank answers for are taken from it. Its seconds are
            added to those of the scores.

    Returns:
        Sums by document; for documents that were not asked for they are 0.

    Raises:
        GolfError: a token is outside the model's vocabulary, a score is not finite, a global phase of SGD is asked
            for on several ranks, or the GPU's memory does not hold the slots and rows.
    """
    if config.sgd_documents and ranks > 1:
        raise GolfError("A global phase of SGD runs in one process; use one device, or set sgd_documents to 0.")
    stream = stream.part(max_documents=config.max_documents, fraction=config.fraction)
    config = bounded(config, documents=len(stream), device=model.embedding.device)
    known = {} if journal is None else journal.all_known
    order = [i for i in stream.order(config.order) if i not in known] if documents is None else documents
    tokens = np.asarray(stream.tokens[: stream.total_targets + 1])
    _check_vocabulary(tokens, model)
    # Bytes before each target of the stream, so that a chunk's bytes are one subtraction.
    bytes_before = np.concatenate([[0], np.cumsum(token_bytes(tokens[:-1], tokens[1:]), dtype=np.int64)])
    # Lightning tests under inference mode, where nothing can be learned.
    with torch.inference_mode(False), frozen(model), restored(model, config):
        model.extend_positions(_positions(stream, config))
        began = time.monotonic()
        try:
            engine = Engine(
                model, config, targets=stream.total_targets, documents=len(stream), keep_target_nats=keep_target_nats
            )
            engine.warm_up()
        except torch.OutOfMemoryError as error:
            raise GolfError(
                f"Test-time training with {config.slots} slots and {config.rows:,} rows does not fit in the GPU's "
                "memory; choose fewer with --model.ttt.slots and --model.ttt.rows, which changes no score."
            ) from error
        _wait(engine.device)
        warm_up_seconds = time.monotonic() - began
        engine.load(tokens, stream.starts)
        taken: list[int] = []
        watch = Watch(
            engine, stream, bytes_before, progress, interval_seconds, elapsed_seconds + warm_up_seconds,
            warm_up_seconds=warm_up_seconds, ranks=ranks, journal=journal,
        )  # fmt: skip
        limits = {"slots": config.slots, "rows": engine.most.rows, "together": engine.most.documents}
        for number, part in enumerate(_phases(order, config.sgd_documents)):
            if number:
                global_sgd(model, stream, config)
            for step in schedule(stream.targets, _noted(part, taken), engine.plan, **limits):
                engine.run(step)
                watch.look(step)
        seconds = watch.report().seconds
    assert known.keys().isdisjoint(taken), "a document that is known must not be scored again"
    done: Mapping[int, tuple[float, int]] = {}
    if journal is not None:
        done = journal.known
        seconds += journal.spent["score"]
        warm_up_seconds += journal.spent["warm_up"]
    return _collect(engine, stream, bytes_before, taken, done, seconds, warm_up_seconds)


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


def _phases(order: Iterable[int], before: int) -> list[Iterable[int]]:
    """The documents before and after the global phase, or all of them where there is none."""
    if not before:
        return [order]
    order = list(order)
    early, late = ([i for i in order if (i < before) == first] for first in (True, False))
    return [early, late] if late else [early]


def _check_vocabulary(tokens: Ids, model: GPT) -> None:
    if (largest := int(tokens.max())) >= model.config.vocab_size:
        raise GolfError(
            f"The split holds token {largest} but the model has {model.config.vocab_size} pieces; "
            "score it with the data it was trained for."
        )


def _positions(stream: DocumentStream, config: TTTConfig) -> int:
    """Positions that the rotary table must cover: exact windows begin at 0, cached chunks go on counting."""
    longest = int(stream.targets.max(initial=0)) if config.mode == "cached" else 0
    return max(config.window, longest + config.chunk)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _noted(order: Iterable[int], taken: list[int]) -> Iterator[int]:
    """The same, each noted as it is taken."""
    for document in order:
        taken.append(document)
        yield document


def _collect(
    engine: Engine,
    stream: DocumentStream,
    bytes_before: npt.NDArray[np.int64],
    taken: list[int],
    known: Mapping[int, tuple[float, int]],
    seconds: float,
    warm_up_seconds: float,
) -> DocumentScores:
    taken_set = set(taken)
    assert len(taken_set) == len(taken), "a document must not be scored twice"
    asked = np.zeros(len(stream), dtype=np.bool_)
    asked[np.asarray([*taken, *known], dtype=np.int64)] = True
    nats, counts = engine.nats[:-1].cpu(), engine.counts[:-1].cpu()
    for document, (known_nats, known_targets) in known.items():
        if document not in taken_set:
            nats[document], counts[document] = known_nats, known_targets
    assert np.array_equal(counts.numpy(), stream.targets * asked), "a target was not scored exactly once"
    if broken := int((~nats.isfinite()).sum()):
        raise GolfError(
            f"{broken} documents have no finite score; the model's weights are broken, score another model."
        )
    kept = engine.target_nats
    return DocumentScores(
        nats=nats,
        targets=counts,
        bytes=torch.from_numpy((bytes_before[stream.starts + stream.targets] - bytes_before[stream.starts]) * asked),
        partial=stream.partial or not asked.all(),
        seconds=seconds,
        warm_up_seconds=warm_up_seconds,
        target_nats=None if kept is None else kept[:-1].cpu(),
    )
