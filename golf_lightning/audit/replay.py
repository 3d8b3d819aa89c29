"""Test-time training written out plainly, in float64, for one document at a time.

It shares the network's forward pass, the starting noise and the settings with the project's engine, and nothing else:
no slots, no padding, no batches, adapters as matrix products, torch's AdamW.
"""

import copy

import torch
from torch import Tensor

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.model.adapters import adapter_shapes, initial_a
from golf_lightning.model.gpt import GPT
from golf_lightning.model.injection import Delta, LayerAdapters

# T tokens of a window, C targets of a chunk, V vocabulary, D width


def exact_copy(model: GPT) -> GPT:
    """The same network, computing in float64 with the plain kernels, and asking for no gradient."""
    exact = copy.deepcopy(model).double().requires_grad_(False)
    exact.compute_dtype = torch.float64
    exact.attention, exact.kernels = "reference", "reference"
    return exact


class PlainAdapters:
    """The adapters of one document, each a product of two matrices.

    Args:
        model: the network they adapt.
        document: index of the document in its stream, which is part of the noise's key.
        config: which adapters, and the seed of their noise.
    """

    def __init__(self, model: GPT, document: int, config: TTTConfig) -> None:
        device, dtype = model.embedding.device, model.compute_dtype
        self.scale = config.adapters.scale
        self.values: dict[str, Tensor] = {}
        for name, shape in adapter_shapes(model.config, model.plan.depth, config.adapters).items():
            value = torch.zeros(shape, dtype=dtype, device=device)
            if name.endswith(".a"):
                key = torch.tensor([document], device=device)
                value.copy_(initial_a(config.seed, key, name.removesuffix(".a"), shape)[0])
            self.values[name] = value.requires_grad_()
        self.layered = sorted({name.partition(".")[0] for name in self.values} - {"head"})

    def layer(self, virtual: int) -> LayerAdapters:
        """See :class:`~golf_lightning.model.injection.Adapters`."""
        return LayerAdapters(**{site: self._delta(site, virtual) for site in self.layered})

    def head(self, x_TD: Tensor) -> Tensor:
        """See :class:`~golf_lightning.model.injection.Adapters`."""
        return self._delta("head")(x_TD) if "head.a" in self.values else x_TD.new_zeros(())

    def _delta(self, site: str, *virtual: int) -> Delta:
        a_rC, b_Or = self.values[f"{site}.a"][virtual], self.values[f"{site}.b"][virtual]
        return lambda x_TC: self.scale * (x_TC @ a_rC.T @ b_Or.T)


def replay_document(exact: GPT, tokens: Tensor, document: int, config: TTTConfig) -> tuple[Tensor, float]:
    """Score one document chunk by chunk, learning from each chunk after its scores are fixed.

    Args:
        exact: from :func:`exact_copy`, with positions for ``config.window``.
        tokens: ``[targets + 1]`` int64, on the model's device.
        document: index of the document in its stream.
        config: how to score.

    Returns:
        Nats of each target, ``[targets]``, and the largest distance from 1 of a sum of probabilities over the
        vocabulary.
    """
    adapters = PlainAdapters(exact, document, config) if config.lr > 0 else None
    optimizer = None
    if adapters is not None:
        optimizer = torch.optim.AdamW(
            adapters.values.values(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    targets, scores, stray = len(tokens) - 1, [], 0.0
    with torch.inference_mode(False), torch.enable_grad():
        for begin in range(0, targets, config.chunk):
            stop = min(begin + config.chunk, targets)
            start = max(0, begin + config.chunk - config.window)
            bounds = torch.tensor([0, stop - start], dtype=torch.int32, device=tokens.device)
            logits_TV = exact.logits(tokens[start:stop], bounds, adapters=adapters)
            log_p_CV = logits_TV[begin - start :].log_softmax(-1)
            nats_C = -log_p_CV.gather(1, tokens[begin + 1 : stop + 1, None])[:, 0]
            scores.append(nats_C.detach())
            stray = max(stray, float((log_p_CV.detach().exp().sum(-1) - 1).abs().max()))
            if optimizer is not None and stop < targets:
                optimizer.zero_grad()
                nats_C.mean().backward()
                optimizer.step()
    return torch.cat(scores), stray
