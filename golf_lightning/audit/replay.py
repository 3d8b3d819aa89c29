"""Test-time training written out plainly, in float64, for one document at a time.

It shares the network's forward pass, the starting noise and the settings with the project's engine, and nothing else:
no slots, no padding, no batches, adapters as matrix products, attention to kept keys as a softmax, torch's AdamW.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.kernels.cross_entropy import softcap_logits
from golf_lightning.model.adapters import adapter_shapes, initial_a
from golf_lightning.model.gpt import GPT
from golf_lightning.model.injection import Adapt, Attend, Context, LayerAdapters

# T tokens of a pass, N positions it sees, C targets of a chunk, V vocabulary, D width, O outputs, r rank,
# H query heads, G key/value heads, K head dimension


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
        self.scale, self.width = config.adapters.scale, model.config.width
        self.kv_width = model.config.kv_heads * model.config.head_dim
        self.values: dict[str, Tensor] = {}
        for name, shape in adapter_shapes(model.config, model.plan.depth, config.adapters).items():
            value = torch.zeros(shape, dtype=dtype, device=device)
            if name.endswith(".a"):
                key = torch.tensor([document], device=device)
                value.copy_(initial_a(config.seed, key, name.removesuffix(".a"), shape)[0])
            self.values[name] = value.requires_grad_()

    def layer(self, virtual: int) -> LayerAdapters:
        """See :class:`~golf_lightning.model.injection.Adapters`."""
        parts = {"q": self.width, "k": self.kv_width, "v": self.kv_width}

        def qkv(base_TO: Tensor, x_TD: Tensor, scale_O: Tensor | None) -> Tensor:
            return base_TO + torch.cat([self._delta(site, x_TD, out, virtual) for site, out in parts.items()], dim=1)

        def parallel(site: str) -> Adapt:
            def adapt(base_TO: Tensor, x_TD: Tensor, scale_O: Tensor | None) -> Tensor:
                delta_TO = self._delta(site, x_TD, self.width, virtual)
                return base_TO + (delta_TO if scale_O is None else scale_O * delta_TO)

            return adapt

        return LayerAdapters(qkv=qkv, attn=parallel("attn"), mlp=parallel("mlp"))

    def head(self, logits_TV: Tensor, x_TD: Tensor) -> Tensor:
        """See :class:`~golf_lightning.model.injection.Adapters`."""
        return logits_TV + self._delta("head", x_TD, logits_TV.shape[1])

    def _delta(self, site: str, x_TD: Tensor, outputs: int, *virtual: int) -> Tensor:
        if f"{site}.a" not in self.values:
            return x_TD.new_zeros(len(x_TD), outputs)
        a_rD, b_Or = self.values[f"{site}.a"][virtual], self.values[f"{site}.b"][virtual]
        return self.scale * (x_TD @ a_rD.T @ b_Or.T)


class KeptKeys:
    """Keys and values of a document's scored positions in every virtual layer, as they were when these were scored.

    Args:
        model: the network.

    Attributes:
        now: keys and values of the last pass.
    """

    def __init__(self, model: GPT) -> None:
        shape = (0, model.config.kv_heads, model.config.head_dim)
        empty = torch.empty(shape, dtype=model.compute_dtype, device=model.embedding.device)
        self.kept = [(empty, empty) for _ in range(model.plan.depth)]
        self.now = list(self.kept)

    def context(self, begin: int, stop: int, first: int) -> Context:
        """A pass over positions ``begin`` up to ``stop`` that sees kept ones from ``first`` on."""
        positions = torch.arange(begin, stop, device=self.kept[0][0].device)
        return Context(positions, lambda virtual: self._attend(virtual, first))

    def keep(self, seen: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add the keys and values of a pass, as ``now`` held them after it."""
        self.kept = [
            (torch.cat([k, new_k]), torch.cat([v, new_v]))
            for (k, v), (new_k, new_v) in zip(self.kept, seen, strict=True)
        ]

    def _attend(self, virtual: int, first: int) -> Attend:
        def attend(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, masked: bool) -> Tensor:
            self.now[virtual] = k_TGK.detach(), v_TGK.detach()
            old_k, old_v = (kept[first:] for kept in self.kept[virtual])
            groups = q_THK.shape[1] // k_TGK.shape[1]
            k_NHK = torch.cat([old_k, k_TGK]).repeat_interleave(groups, dim=1)
            v_NHK = torch.cat([old_v, v_TGK]).repeat_interleave(groups, dim=1)
            place_T = len(old_k) + torch.arange(len(q_THK), device=q_THK.device)
            hidden_TN = torch.arange(len(k_NHK), device=q_THK.device) > place_T[:, None]
            scores_HTN = torch.einsum("thk,nhk->htn", q_THK, k_NHK) / q_THK.shape[2] ** 0.5
            weights_HTN = scores_HTN.masked_fill(hidden_TN, -torch.inf).softmax(-1)
            return torch.einsum("htn,nhk->thk", weights_HTN, v_NHK)

        return attend


def replay_document(exact: GPT, tokens: Tensor, document: int, config: TTTConfig) -> tuple[Tensor, float]:
    """Score one document chunk by chunk, learning from each chunk after its scores are fixed.

    Args:
        exact: from :func:`exact_copy`.
        tokens: ``[targets + 1]`` int64, on the model's device.
        document: index of the document in its stream.
        config: how to score.

    Returns:
        Nats of each target, ``[targets]``, and the largest distance from 1 of a sum of probabilities over the
        vocabulary.
    """
    targets, scores, stray = len(tokens) - 1, [], 0.0
    exact.extend_positions(max(config.window, targets))
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
    past = KeptKeys(exact) if config.mode == "cached" else None
    with torch.inference_mode(False), torch.enable_grad():
        for begin in range(0, targets, config.chunk):
            stop, first = min(begin + config.chunk, targets), max(0, begin + config.chunk - config.window)
            log_p_CV = _log_probabilities(exact, tokens[first:stop], begin, first, adapters, past)
            # What later chunks see is what was there when this one was scored.
            seen = [] if past is None else list(past.now)
            nats_C = -log_p_CV.gather(1, tokens[begin + 1 : stop + 1, None])[:, 0]
            scores.append(nats_C.detach())
            stray = max(stray, float((log_p_CV.detach().exp().sum(-1) - 1).abs().max()))
            for turn in range(config.steps if optimizer is not None and stop < targets else 0):
                assert optimizer is not None
                if turn:
                    log_p_CV = _log_probabilities(exact, tokens[first:stop], begin, first, adapters, past)
                    nats_C = -log_p_CV.gather(1, tokens[begin + 1 : stop + 1, None])[:, 0]
                optimizer.zero_grad()
                nats_C.mean().backward()
                optimizer.step()
            if past is not None:
                past.keep(seen)
    return torch.cat(scores), stray


def _log_probabilities(
    exact: GPT, window: Tensor, begin: int, first: int, adapters: PlainAdapters | None, past: KeptKeys | None
) -> Tensor:
    """Logarithms of the distributions of a chunk's targets, ``[C, V]``.

    Args:
        exact: the network.
        window: tokens of the window, the chunk's last.
        begin: position of the chunk's first token.
        first: position of the window's first token.
        adapters: of the document.
        past: keys and values of earlier chunks, in the cached mode.
    """
    tokens = window if past is None else window[begin - first :]
    context = None if past is None else past.context(begin, begin + len(tokens), first)
    bounds = torch.tensor([0, len(tokens)], dtype=torch.int32, device=tokens.device)
    n_TD = exact.features(tokens, bounds, adapters=adapters, context=context)
    n_CD = n_TD[begin - first :] if past is None else n_TD
    return softcap_logits(exact.head(n_CD, adapters=adapters), exact.config.softcap).log_softmax(-1)
