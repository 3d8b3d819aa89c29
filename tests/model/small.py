"""Small models with random weights: nothing of the initialization's zeros and ones may hide a mistake."""

from typing import Any

import torch
from torch import Tensor

from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT


def small_config(**changes: Any) -> GPTConfig:
    """A model of 7 layers with a loop, skips, lanes and partial rotary."""
    shape: dict[str, Any] = {
        "vocab_size": 50,
        "layers": 7,
        "width": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "mlp_width": 48,
        "rope_dims": 4,
        "max_seqlen": 32,
        "loop_first": 2,
        "loop_last": 3,
        "loop_passes": 3,
        "lanes_start": 5,
    }
    return GPTConfig(**(shape | changes))


def random_model(config: GPTConfig, dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> GPT:
    """Every parameter shifted by noise, so that no part of the network is switched off."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT(config, compute_dtype=dtype, **options).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pack(*documents: Tensor, padding: int = 0, segments: int = 8) -> tuple[Tensor, Tensor]:
    """Tokens and cu_seqlens of documents laid end to end, with ``padding`` unused rows."""
    lengths = torch.tensor([len(document) for document in documents])
    tokens = torch.cat([*documents, torch.zeros(padding, dtype=torch.int64)])
    cu_seqlens = torch.full((segments + 1,), int(lengths.sum()), dtype=torch.int32)
    cu_seqlens[: len(lengths) + 1] = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return tokens, cu_seqlens
