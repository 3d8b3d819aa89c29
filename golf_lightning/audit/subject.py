"""What the checks of a score look at: a model, a way of scoring, and a small split to score."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golf_lightning.data.tokenizer import BOS
from golf_lightning.errors import GolfError
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.scores import DocumentScores
from golf_lightning.model.gpt import GPT

# N tokens of a split; target i of it is token i + 1

Tokens = npt.NDArray[np.int64]
TokenBytes = Callable[[npt.NDArray[np.integer], npt.NDArray[np.integer]], npt.NDArray[np.int64]]


class DocumentScorer(Protocol):
    """A way of scoring documents; :func:`~golf_lightning.evaluation.ttt.score_documents` is the project's."""

    def __call__(
        self,
        model: GPT,
        stream: DocumentStream,
        config: TTTConfig,
        *,
        token_bytes: TokenBytes,
        keep_target_nats: bool,
    ) -> DocumentScores:
        """Score every document of the stream, with ``target_nats`` where they are asked for."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far two honest computations of one score may lie apart, in nats.

    Attributes:
        largest: of one target.
        mean: of the mean over the targets, with sign.
        total: of a sum of probabilities from 1, where every probability comes from the same weights.
        adapted: the same where every probability comes from adapters with a noise of their own.
    """

    largest: float
    mean: float
    total: float
    adapted: float


TOLERANCES = {
    torch.float64: Tolerance(largest=1e-6, mean=1e-7, total=1e-6, adapted=5e-3),
    torch.float32: Tolerance(largest=1e-3, mean=5e-5, total=1e-4, adapted=5e-3),
    torch.bfloat16: Tolerance(largest=0.5, mean=1e-2, total=1e-2, adapted=2e-2),
}


@dataclass(kw_only=True)
class Subject:
    """A scorer at work on a small split.

    Attributes:
        model: on its device, with recurrence as in the artifact.
        scorer: scores documents.
        config: how; a short window, so that windows slide within the small split.
        tokens: ``[N]`` the small split, cut from documents of the real one.
        token_bytes: bytes of each target, as the run under audit counts them.
        generator: of everything that is drawn.
        progress: told what is being done.
    """

    model: GPT
    scorer: DocumentScorer
    config: TTTConfig
    tokens: Tokens
    token_bytes: TokenBytes
    generator: np.random.Generator
    progress: Callable[[str], None]

    @property
    def tolerance(self) -> Tolerance:
        """What rounding explains in the model's compute dtype."""
        return TOLERANCES[self.model.compute_dtype]

    @property
    def stream(self) -> DocumentStream:
        """The small split, cut into documents."""
        return DocumentStream(self.tokens, bos_id=BOS)

    def score(self, tokens: Tokens | None = None, config: TTTConfig | None = None) -> DocumentScores:
        """Score a split, the small one unless another is given."""
        stream = DocumentStream(self.tokens if tokens is None else tokens, bos_id=BOS)
        config = config or self.config
        return self.scorer(self.model, stream, config, token_bytes=self.token_bytes, keep_target_nats=True)

    def nats(self, tokens: Tokens | None = None, config: TTTConfig | None = None) -> Tensor:
        """Nats of each target of a split, ``[N - 1]`` float64 on the CPU.

        Raises:
            GolfError: the scorer kept no scores of targets.
        """
        return self.nats_of(self.score(tokens, config))

    @staticmethod
    def nats_of(scores: DocumentScores) -> Tensor:
        """The same from scores."""
        if scores.target_nats is None:
            raise GolfError("The scorer kept no score of each target; it must do so when keep_target_nats is set.")
        return scores.target_nats.double().cpu()

    def other_token(self, token: int) -> int:
        """A token that is neither this one nor BOS, drawn evenly."""
        while (drawn := int(self.generator.integers(self.model.config.vocab_size))) in (token, BOS):
            pass
        return drawn


def small_split(stream: DocumentStream, generator: np.random.Generator, *, documents: int, longest: int) -> Tokens:
    """The beginnings of some documents, first and last of the stream among them, as a split of their own.

    Their lengths are drawn, but that one is as long as it can be.

    Args:
        stream: the real split.
        generator: draws documents and lengths.
        documents: how many, at most.
        longest: tokens of a beginning, at most.
    """
    sizes = np.diff(stream.starts, append=len(stream.tokens))
    count = min(documents, len(stream))
    middle = generator.permutation(np.arange(1, len(stream) - 1))[: max(count - 2, 0)]
    chosen = np.array(sorted({0, *(int(i) for i in middle), len(stream) - 1})[:count])
    lengths = generator.integers(2, longest + 1, len(chosen))
    lengths[np.argmax(sizes[chosen])] = longest
    parts = [
        stream.tokens[stream.starts[i] : stream.starts[i] + min(length, sizes[i])].astype(np.int64)
        for i, length in zip(chosen, lengths, strict=True)
    ]
    return np.concatenate(parts)


def small_config(config: TTTConfig, window_chunks: int) -> TTTConfig:
    """The same way of scoring with a window of so many chunks, and no budget or part to warn of.

    A global phase comes after two documents at most, so that the sample goes through it.
    """
    window = min(config.window, window_chunks * config.chunk)
    return dataclasses.replace(whole(config), window=window, sgd_documents=min(config.sgd_documents, 2))


def whole(config: TTTConfig) -> TTTConfig:
    """The same way of scoring for all documents, without a warning about the clock."""
    return dataclasses.replace(config, max_documents=None, fraction=1.0, budget_seconds=None)
