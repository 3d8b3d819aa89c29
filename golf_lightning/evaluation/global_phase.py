"""One pass of SGD on the model itself, over documents that are scored already.

Later records have such a phase between two parts of test-time training (global SGD; theirs sorts documents by length).
Here documents come in stream order, each cut into windows of its own. Scores of documents after the phase depend on
which documents came before it: the option is off by default.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.kernels.cross_entropy import IGNORED
from golf_lightning.model.gpt import GPT

# T tokens of a batch, W windows

MOMENTUM, LARGEST_NORM = 0.9, 1.0

BATCH_TOKENS = 32_768
"""Most tokens of a batch, or one window where that is longer."""

MOST_WINDOWS = 256
"""Windows of a batch: FlashAttention-4 has one kernel for up to 256 segments."""


def global_sgd(model: GPT, stream: DocumentStream, config: TTTConfig) -> None:
    """Learn once from the first ``config.sgd_documents`` documents, in place.

    The step is SGD with momentum 0.9 on the mean loss of a batch, gradients clipped at a norm of 1.
    """
    device, parameters = model.embedding.device, list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=config.sgd_lr, momentum=MOMENTUM)
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        for tokens_T, targets_T, bounds in _batches(stream, config):
            nll_T = model(tokens_T.to(device), targets_T.to(device), bounds.to(device))
            (nll_T.sum() / (targets_T != IGNORED).sum().item()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
            optimizer.step()
            optimizer.zero_grad()
        for parameter in parameters:
            parameter.requires_grad_(False)


@contextlib.contextmanager
def restored(model: GPT, config: TTTConfig) -> Iterator[None]:
    """Afterwards the model has the weights that it had before, if the phase is on."""
    kept = [parameter.detach().clone() for parameter in model.parameters()] if config.sgd_documents else []
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept, strict=False):
                parameter.copy_(value)


def _batches(stream: DocumentStream, config: TTTConfig) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tokens ``[T]``, targets ``[T]`` and bounds ``[257]`` of each batch; every target of the documents once."""
    windows: list[Tensor] = []
    most = max(BATCH_TOKENS, config.window)
    for document in range(min(config.sgd_documents, len(stream))):
        tokens = torch.from_numpy(stream[document])
        for begin in range(0, len(tokens) - 1, config.window):
            window = tokens[begin : begin + config.window + 1]
            if sum(len(w) - 1 for w in windows) + len(window) - 1 > most or len(windows) == MOST_WINDOWS:
                yield _packed(windows)
                windows = []
            windows.append(window)
    if windows:
        yield _packed(windows)


def _packed(windows: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    ends = torch.tensor([len(window) - 1 for window in windows]).cumsum(0)
    # Kernels are compiled anew for rows that are no multiple of 16.
    padding = -int(ends[-1]) % 16
    tokens_T = F.pad(torch.cat([window[:-1] for window in windows]), (0, padding))
    targets_T = F.pad(torch.cat([window[1:] for window in windows]), (0, padding), value=IGNORED)
    bounds = ends[-1].repeat(MOST_WINDOWS + 1)
    bounds[0], bounds[1 : len(ends) + 1] = 0, ends
    return tokens_T, targets_T, bounds.int()
