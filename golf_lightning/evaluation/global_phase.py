"""One pass of SGD on the model itself, over documents that are scored already.

Later records have such a phase between two parts of test-time training (global SGD; theirs sorts documents by length).
Here documents come in stream order, each cut into windows of its own. Scores of documents after the phase depend on
which documents came before it: the option is off by default.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.kernels.cross_entropy import IGNORED
from golf_lightning.model.gpt import GPT

# T tokens of a batch, W windows

MOMENTUM, LARGEST_NORM = 0.9, 1.0

MOST_WINDOWS = 256
"""Windows of a batch: FlashAttention-4 has one kernel for up to 256 segments."""


def global_sgd(model: GPT, stream: DocumentStream, config: TTTConfig) -> None:
    """Learn once from the first ``config.sgd_documents`` documents, in place, batches of ``config.rows`` tokens.

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
    for document in range(min(config.sgd_documents, len(stream))):
        tokens = torch.from_numpy(stream[document])
        for begin in range(0, len(tokens) - 1, config.window):
            window = tokens[begin : begin + config.window + 1]
            if sum(len(w) - 1 for w in windows) + len(window) - 1 > config.rows or len(windows) == MOST_WINDOWS:
                yield _packed(windows, config.rows)
                windows = []
            windows.append(window)
    if windows:
        yield _packed(windows, config.rows)


def _packed(windows: list[Tensor], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens_T, targets_T = torch.zeros(rows, dtype=torch.int64), torch.full((rows,), IGNORED)
    ends = torch.tensor([len(window) - 1 for window in windows]).cumsum(0)
    tokens_T[: ends[-1]] = torch.cat([window[:-1] for window in windows])
    targets_T[: ends[-1]] = torch.cat([window[1:] for window in windows])
    bounds = ends[-1].repeat(MOST_WINDOWS + 1)
    bounds[0], bounds[1 : len(ends) + 1] = 0, ends
    return tokens_T, targets_T, bounds.int()
