"""A small network, a small split, and test-time training written out for one document at a time."""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.scores import DocumentScores
from golf_lightning.evaluation.ttt import score_documents
from golf_lightning.model.adapters import AdapterConfig, adapter_shapes, initial_a
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.model.injection import Context, LayerAdapters

CHUNK, WINDOW = 4, 10
LENGTHS = (1, CHUNK, 23, CHUNK + 1, 2, CHUNK - 1, 2 * CHUNK, WINDOW, 14)
"""Targets of each document: fewest possible, whole chunks and one more, longer than the window."""


def small_gpt(dtype=torch.float64, *, recurrent=True, attention="auto", seed=0, **fields) -> GPT:
    """A network that computes in ``dtype`` and whose every weight is random."""
    defaults = {
        **{"vocab_size": 19, "layers": 4, "width": 16, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp_width": 24},
        **{"rope_dims": 2, "max_seqlen": 16, "lanes": "crossed", "lanes_start": 3},
        **{"loop_first": 1, "loop_last": 2, "loop_passes": 2},
    }
    config = GPTConfig(**{**defaults, **fields})
    torch.manual_seed(seed)
    model = GPT(config, compute_dtype=dtype, attention=attention).to(dtype)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.recurrent = recurrent
    return model


def small_split(lengths=LENGTHS, seed=0) -> np.ndarray:
    """Documents of ``lengths`` targets; the last one is not followed by a BOS."""
    rng = np.random.default_rng(seed)
    documents = [np.array([1, *rng.integers(2, 19, length - 1)]) for length in lengths]
    return np.concatenate([*documents, rng.integers(2, 19, 1)]).astype(np.uint16)


def small_config(**fields) -> TTTConfig:
    """Steps large enough that learning shows."""
    return TTTConfig(
        **{
            "mode": "exact",
            "adapters": AdapterConfig(rank=3),
            "lr": 0.02,
            "chunk": CHUNK,
            "window": WINDOW,
            "slots": 3,
            "rows": 64,
            "seed": 5,
            **fields,
        }
    )


def two_bytes(previous, targets) -> np.ndarray:
    """Bytes of a made-up tokenizer: 2 a token, 0 for BOS, 1 more after BOS."""
    return np.where(targets == 1, 0, 2 + (previous == 1)).astype(np.int64)


def score(model: GPT, tokens: np.ndarray, config: TTTConfig, **options) -> DocumentScores:
    """Score a split and keep every target's score."""
    return score_documents(
        model, DocumentStream(tokens), config, **{"token_bytes": two_bytes, "keep_target_nats": True, **options}
    )


class OneDocument:
    """Adapters of one document as leaf tensors, applied as plain matrix products."""

    def __init__(self, model: GPT, document: int, config: TTTConfig):
        self.values = {}
        self.scale = config.adapters.scale
        for name, shape in adapter_shapes(model.config, model.plan.depth, config.adapters).items():
            value = torch.zeros(shape, dtype=model.compute_dtype)
            if name.endswith(".a"):
                value = initial_a(config.seed, torch.tensor([document]), name[:-2], shape)[0].to(model.compute_dtype)
            self.values[name] = value.requires_grad_()

        self.kv_width = model.config.kv_heads * model.config.head_dim
        self.width = model.config.width

    def _delta(self, site, outputs, x, *virtual):
        if f"{site}.a" not in self.values:
            return x.new_zeros(len(x), outputs)
        a, b = self.values[f"{site}.a"][virtual], self.values[f"{site}.b"][virtual]
        return self.scale * (b @ (a @ x.T)).T

    def layer(self, virtual):
        widths = {"q": self.width, "k": self.kv_width, "v": self.kv_width}

        def qkv(base, x, _):
            return base + torch.cat([self._delta(site, out, x, virtual) for site, out in widths.items()], dim=1)

        def parallel(site):
            return lambda base, x, scale: base + scale * self._delta(site, self.width, x, virtual)

        return LayerAdapters(qkv=qkv, attn=parallel("attn"), mlp=parallel("mlp"))

    def head(self, logits, x):
        return logits + self._delta("head", logits.shape[1], x)


def reference(model: GPT, tokens: np.ndarray, config: TTTConfig, *, learn_first=False) -> torch.Tensor:
    """Nats of every target, one document after the other; ``learn_first`` cheats: it scores after the update."""
    return torch.cat(
        [
            reference_document(model, torch.from_numpy(tokens.astype(np.int64)), i, config, learn_first)
            for i, tokens in enumerate(DocumentStream(tokens))
            if len(tokens) > 1
        ]
    )


def reference_document(model, tokens, document, config, learn_first):
    adapters = OneDocument(model, document, config) if config.lr else None
    optimizer = None
    if adapters is not None:
        optimizer = torch.optim.AdamW(
            adapters.values.values(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    targets, scores = len(tokens) - 1, []
    for begin in range(0, targets, config.chunk):
        start, stop = max(0, begin + config.chunk - config.window), min(begin + config.chunk, targets)

        def chunk_nats(start=start, stop=stop, begin=begin):
            logits = model.logits(tokens[start:stop], torch.tensor([0, stop - start]).int(), adapters=adapters)
            nats = F.nll_loss(logits.log_softmax(-1), tokens[start + 1 : stop + 1], reduction="none")
            return nats[begin - start :]

        nats = loss = chunk_nats()
        for turn in range(config.steps if optimizer is not None and begin + config.chunk < targets else 0):
            loss = loss if turn == 0 else chunk_nats()
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        if learn_first:
            nats = chunk_nats()
        scores.append(nats.detach())
    model.zero_grad()
    return torch.cat(scores)


def cached_reference(model: GPT, tokens: np.ndarray, config: TTTConfig) -> torch.Tensor:
    """Cached scoring, one document after the other: a chunk sees the keys and values of its predecessors as they were
    when those were scored, written out as lists."""
    documents = [torch.from_numpy(document.astype(np.int64)) for document in DocumentStream(tokens)]
    return torch.cat(
        [cached_document(model, document, i, config) for i, document in enumerate(documents) if len(document) > 1]
    )


class Past:
    """Keys and values of a document's scored positions, of each virtual layer, as plain lists."""

    def __init__(self, model, window):
        self.layers = [([], []) for _ in range(model.plan.depth)]
        self.window, self.groups = window, model.config.heads // model.config.kv_heads

    def attend(self, virtual, first, keeps):
        keys, values = self.layers[virtual]

        def run(q, k, v, masked):
            old = [torch.stack(kept[first:]) if kept[first:] else x[:0] for kept, x in ((keys, k), (values, v))]
            if keeps:
                self.new[virtual] = k.detach(), v.detach()
            pairs = zip(old, (k, v), strict=True)
            k_all, v_all = (torch.cat(pair).repeat_interleave(self.groups, dim=1) for pair in pairs)
            seen = torch.arange(len(k_all)) <= len(old[0]) + torch.arange(len(q))[:, None]
            scores = torch.einsum("qhk,nhk->hqn", q, k_all) * q.shape[-1] ** -0.5
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            return torch.einsum("hqn,nhk->qhk", weights, v_all)

        return run


def cached_document(model, tokens, document, config):
    adapters = OneDocument(model, document, config) if config.lr else None
    options = {"betas": (config.beta1, config.beta2), "eps": config.eps, "weight_decay": config.weight_decay}
    optimizer = torch.optim.AdamW(adapters.values.values(), lr=config.lr, **options) if adapters else None
    past, scores, targets = Past(model, config.window), [], len(tokens) - 1
    model.extend_positions(targets + 1)
    for begin in range(0, targets, config.chunk):
        stop = min(begin + config.chunk, targets)
        first = max(0, begin + config.chunk - config.window)
        past.new = {}
        for turn in range(config.steps):
            attend = functools.partial(past.attend, first=first, keeps=turn == 0)
            context = Context(torch.arange(begin, stop), attend)
            bounds = torch.tensor([0, stop - begin]).int()
            n = model.features(tokens[begin:stop], bounds, adapters=adapters, context=context)
            logits = model.config.softcap * torch.tanh(model.head(n, adapters=adapters) / model.config.softcap)
            nats = F.nll_loss(logits.log_softmax(-1), tokens[begin + 1 : stop + 1], reduction="none")
            if turn == 0:
                scores.append(nats.detach())
            if optimizer is not None and stop < targets:
                optimizer.zero_grad()
                nats.mean().backward()
                optimizer.step()
        for virtual, (keys, values) in enumerate(past.layers):
            keys.extend(past.new[virtual][0])
            values.extend(past.new[virtual][1])
    model.zero_grad()
    return torch.cat(scores)
