"""Test-time training written out plainly, in float64, for one document at a time.

It shares the network's layers, the starting noise and the settings with the project's engine, and nothing else: no
slots, no padding, no batches, adapters as matrix products, keys and values as lists, torch's AdamW.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.kernels.cross_entropy import softcap_logits
from golf_lightning.model.adapters import adapter_shapes, initial_a
from golf_lightning.model.gpt import GPT
from golf_lightning.model.injection import Attend, Context, LayerAdapters

# T tokens of a pass, P of it and its past, C targets of a chunk, V vocabulary, D width, O outputs of a matrix, H query
# heads, G key/value heads, K head dimension


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
        self.outputs = {"q": model.config.width, "k": model.config.kv_heads * model.config.head_dim}
        self.outputs["v"] = self.outputs["k"]
        self.values: dict[str, Tensor] = {}
        for name, shape in adapter_shapes(model.config, model.plan.depth, config.adapters).items():
            value = torch.zeros(shape, dtype=dtype, device=device)
            if name.endswith(".a"):
                key = torch.tensor([document], device=device)
                value.copy_(initial_a(config.seed, key, name.removesuffix(".a"), shape)[0])
            self.values[name] = value.requires_grad_()

    def layer(self, virtual: int) -> LayerAdapters:
        """See :class:`~golf_lightning.model.injection.Adapters`."""

        def qkv(base_TO: Tensor, x_TD: Tensor, scale_O: Tensor | None) -> Tensor:
            parts = [self._delta(site, x_TD, virtual) for site in self.outputs]
            wide = [
                x_TD.new_zeros(len(x_TD), outputs) if part is None else part
                for part, outputs in zip(parts, self.outputs.values(), strict=True)
            ]
            return base_TO + torch.cat(wide, dim=1)

        def parallel(site: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
            def adapt(base_TO: Tensor, x_TD: Tensor, scale_O: Tensor | None) -> Tensor:
                delta = self._delta(site, x_TD, virtual)
                return base_TO if delta is None else base_TO + (delta if scale_O is None else scale_O * delta)

            return adapt

        return LayerAdapters(qkv=qkv, attn=parallel("attn"), mlp=parallel("mlp"))

    def head(self, logits_TV: Tensor, x_TD: Tensor) -> Tensor:
        """See :class:`~golf_lightning.model.injection.Adapters`."""
        delta = self._delta("head", x_TD)
        return logits_TV if delta is None else logits_TV + delta

    def _delta(self, site: str, x_TC: Tensor, *virtual: int) -> Tensor | None:
        if f"{site}.a" not in self.values:
            return None
        a_rC, b_Or = self.values[f"{site}.a"][virtual], self.values[f"{site}.b"][virtual]
        return self.scale * (x_TC @ a_rC.T @ b_Or.T)


class Past:
    """Keys and values of a document's scored positions, by virtual layer, as they were when those were scored."""

    def __init__(self, model: GPT) -> None:
        self.group = model.config.heads // model.config.kv_heads
        self.kept: list[tuple[Tensor, Tensor] | None] = [None] * model.plan.depth
        self.new: list[tuple[Tensor, Tensor] | None] = [None] * model.plan.depth

    def attend(self, virtual: int, first: int) -> Attend:
        """Causal attention of new rows over the kept positions from ``first`` on and over each other."""

        def run(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, masked: bool) -> Tensor:
            self.new[virtual] = k_TGK.detach(), v_TGK.detach()
            kept = self.kept[virtual]
            k, v = (
                (k_TGK, v_TGK)
                if kept is None
                else (
                    torch.cat([kept[0][first:], k_TGK]),
                    torch.cat([kept[1][first:], v_TGK]),
                )
            )
            k, v = (x.repeat_interleave(self.group, dim=1) for x in (k, v))
            new, total = len(q_THK), len(k)
            seen = torch.ones(new, total, dtype=torch.bool, device=q_THK.device).tril(total - new)
            scores_HTP = torch.einsum("qhk,nhk->hqn", q_THK, k) * q_THK.shape[-1] ** -0.5
            return torch.einsum("hqn,nhk->qhk", scores_HTP.masked_fill(~seen, -torch.inf).softmax(-1), v)

        return run

    def keep(self, layers: list[tuple[Tensor, Tensor] | None]) -> None:
        """Append the keys and values of a pass."""
        for virtual, new in enumerate(layers):
            assert new is not None, "every layer has attended"
            kept = self.kept[virtual]
            self.kept[virtual] = new if kept is None else (torch.cat([kept[0], new[0]]), torch.cat([kept[1], new[1]]))


def replay_document(exact: GPT, tokens: Tensor, document: int, config: TTTConfig) -> tuple[Tensor, float]:
    """Score one document chunk by chunk, learning from each chunk after its scores are fixed.

    Args:
        exact: from :func:`exact_copy`; its rotary table grows to what the document needs.
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
    past = Past(exact) if config.mode == "cached" else None
    exact.extend_positions(max(config.window, len(tokens)))
    targets, scores, stray = len(tokens) - 1, [], 0.0
    with torch.inference_mode(False), torch.enable_grad():
        for begin in range(0, targets, config.chunk):
            stop = min(begin + config.chunk, targets)
            log_p_CV = _chunk(exact, tokens, begin, stop, config, adapters, past)
            # Kept as they were when the chunk was scored, once no further step needs the chunk to be new.
            scored = list(past.new) if past is not None else []
            nats_C = _nats(log_p_CV, tokens[begin + 1 : stop + 1])
            scores.append(nats_C.detach())
            stray = max(stray, float((log_p_CV.detach().exp().sum(-1) - 1).abs().max()))
            for turn in range(config.steps if optimizer is not None and stop < targets else 0):
                assert optimizer is not None
                if turn > 0:
                    log_p_CV = _chunk(exact, tokens, begin, stop, config, adapters, past)
                    nats_C = _nats(log_p_CV, tokens[begin + 1 : stop + 1])
                optimizer.zero_grad()
                nats_C.mean().backward()
                optimizer.step()
            if past is not None:
                past.keep(scored)
    return torch.cat(scores), stray


def _chunk(
    exact: GPT, tokens: Tensor, begin: int, stop: int, config: TTTConfig, adapters: PlainAdapters | None,
    past: Past | None,
) -> Tensor:  # fmt: skip
    """Log-probabilities ``[C, V]`` of what follows positions ``begin`` to ``stop``."""
    first = max(0, begin + config.chunk - config.window)
    if past is None:
        bounds = torch.tensor([0, stop - first], dtype=torch.int32, device=tokens.device)
        logits_TV = exact.logits(tokens[first:stop], bounds, adapters=adapters)
        return logits_TV[begin - first :].log_softmax(-1)
    bounds = torch.tensor([0, stop - begin], dtype=torch.int32, device=tokens.device)
    context = Context(torch.arange(begin, stop, device=tokens.device), lambda virtual: past.attend(virtual, first))
    n_TD = exact.features(tokens[begin:stop], bounds, adapters=adapters, context=context)
    return softcap_logits(exact.head(n_TD, adapters=adapters), exact.config.softcap).log_softmax(-1)


def _nats(log_p_CV: Tensor, targets_C: Tensor) -> Tensor:
    return -log_p_CV.gather(1, targets_C[:, None])[:, 0]
