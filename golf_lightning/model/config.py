"""The shape of a GPT: every number that decides what the network computes."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from golf_lightning.errors import GolfError

Lanes = Literal["none", "isolated", "crossed"]


@dataclass(kw_only=True)
class GPTConfig:
    """Shape and constants of the banked GPT. Defaults are the recipe's full size (35.94 M parameters).

    Args:
        vocab_size: pieces of the tokenizer; must equal the tokenizer's.
        layers: physical layers, each with its own row in every bank.
        width: model dimension D.
        heads: query heads.
        kv_heads: key/value heads; divides ``heads``.
        head_dim: dimension of one head; ``heads * head_dim`` must equal ``width``.
        mlp_width: hidden units of the MLP.
        rope_dims: leading dimensions of each head that rotate; even, at most ``head_dim``.
        rope_base: base of the rotary frequencies.
        max_seqlen: longest segment attention sees, in tokens; longer documents are split.
        q_gain_init: initial gain of each query head after its norm.
        xsa: remove from every attention output its component along the token's own value vector.
        softcap: logits are ``softcap * tanh(z / softcap)``.
        embedding_std: standard deviation of the initial embedding, which is also the head.
        loop_first: first looped layer.
        loop_last: last looped layer, inclusive.
        loop_passes: times the looped layers run once recurrence is on; 1 means never.
        lanes: parallel residual lanes: ``isolated`` (PR #1536), ``crossed`` (#1530 v2) or ``none``.
        lanes_start: first physical layer with two lanes; after the loop and in the decoder half.
    """

    vocab_size: int = 8192
    layers: int = 11
    width: int = 512
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    mlp_width: int = 2048
    rope_dims: int = 16
    rope_base: float = 10_000.0
    max_seqlen: int = 2048
    q_gain_init: float = 5.0
    xsa: bool = True
    softcap: float = 30.0
    embedding_std: float = 0.005
    loop_first: int = 3
    loop_last: int = 5
    loop_passes: int = 3
    lanes: Lanes = "crossed"
    lanes_start: int = 8

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "max_seqlen"):
            if getattr(self, name) < 1:
                raise GolfError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.heads * self.head_dim != self.width:
            raise GolfError(
                f"heads * head_dim is {self.heads * self.head_dim} but width is {self.width}; make them equal."
            )
        if self.heads % self.kv_heads:
            raise GolfError(f"{self.heads} query heads do not divide into {self.kv_heads} key/value heads.")
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_dim:
            raise GolfError(
                f"rope_dims is {self.rope_dims}; it must be even and between 0 and head_dim {self.head_dim}."
            )
        if self.loop_passes < 1:
            raise GolfError(f"loop_passes is {self.loop_passes}; 1 means no recurrence, more means that many passes.")
        if not 0 <= self.loop_first <= self.loop_last < self.layers:
            raise GolfError(
                f"looped layers {self.loop_first}..{self.loop_last} are out of range; "
                f"choose loop_first <= loop_last within layers 0..{self.layers - 1}."
            )
        if self.lanes not in ("none", "isolated", "crossed"):
            raise GolfError(f"lanes is {self.lanes!r}; choose none, isolated or crossed.")
        if self.lanes != "none":
            decoder_start = self.layers // 2
            lowest = max(decoder_start, self.loop_last + 1 if self.loop_passes > 1 else 0)
            if not lowest <= self.lanes_start < self.layers:
                raise GolfError(
                    f"lanes_start is {self.lanes_start}; lanes begin after the loop and in the decoder half, "
                    f"so choose {lowest}..{self.layers - 1}."
                )

    @property
    def lane_layers(self) -> int:
        """Number of layers that run with two lanes."""
        return 0 if self.lanes == "none" else self.layers - self.lanes_start

    @property
    def bank_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Shape of each bank, ``[matrices, rows (out), columns (in)]``."""
        kv_width = self.kv_heads * self.head_dim
        return {
            "qo": (2 * self.layers, self.width, self.width),
            "kv": (2 * self.layers, kv_width, self.width),
            "up": (self.layers, self.mlp_width, self.width),
            "down": (self.layers, self.width, self.mlp_width),
        }

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """Rebuild a configuration from :meth:`to_dict`.

        Raises:
            GolfError: a field is unknown, or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise GolfError(f"Unknown model fields {unknown}; this file was written by another version.")
        return cls(**values)


def matrix_inputs(config: GPTConfig) -> dict[str, list[str]]:
    """For each bank and the embedding, the recorder site whose activations enter each matrix.

    Sites are ``qkv.i`` (Q, K and V of layer i share one input), ``o.i``, ``up.i``, ``down.i`` and ``head``. The list of
    a bank runs along its first dimension; the embedding, as the tied head, is one matrix.
    """
    layers = range(config.layers)
    qkv = [f"qkv.{i}" for i in layers]
    return {
        "qo": qkv + [f"o.{i}" for i in layers],
        "kv": qkv + qkv,
        "up": [f"up.{i}" for i in layers],
        "down": [f"down.{i}" for i in layers],
        "embedding": ["head"],
    }
