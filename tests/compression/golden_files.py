"""Artifacts of format version 1 that must stay readable, and the state that each of them holds.

A new coder adds one line to :data:`GOLDEN`: ``python tests/compression/golden_files.py NAME`` writes its file and
prints the line.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from golf_lightning.compression.artifact import write_artifact
from golf_lightning.compression.quantize import ROLE_OF, QuantizedState, QuantizedTensor
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.order import vector_shapes

FOLDER = Path(__file__).with_name("golden")
TOKENIZER = "0123456789abcdef" * 4
CONFIG = GPTConfig(
    vocab_size=40,
    layers=4,
    width=8,
    heads=2,
    kv_heads=1,
    head_dim=4,
    mlp_width=12,
    rope_dims=2,
    max_seqlen=16,
    loop_first=1,
    loop_last=1,
    loop_passes=2,
    lanes_start=3,
)
BITS = {"qo": 6, "kv": 5, "up": 4, "down": 3, "embedding": 8}

STATE = "9d0cfdde80ceaa16b07666c23c2783b8ec291eec341847032f5e59261d6e0090"
"""SHA-256 of the state in every golden file, see :func:`digest`."""
GOLDEN = {
    "brotli": "9b65b491ad2dd494007ad6c40afcb485850da0a91e27bc853ad3ed65316b8e52",
    "rans": "80a84e85a29e4a05f43f5e27ad619d8f4700dbe66379e7eac60b410ae7c45fc6",
    "raw": "53fcc876dc3258c10b233065226e44e3e99b8e6eea01f7e23615b96b14c71148",
}
"""SHA-256 of each file in the folder ``golden``, by coder."""


def golden_state() -> QuantizedState:
    """Codes, scales and vectors from a little congruential generator: the same with every version of every package."""
    numbers = _numbers()

    def draw(shape: tuple[int, ...], low: int, high: int) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.tensor([low + next(numbers) % (high - low + 1) for _ in range(count)]).reshape(shape)

    shapes = {**CONFIG.bank_shapes, "embedding": (CONFIG.vocab_size, CONFIG.width)}
    matrices = {}
    for name, shape in shapes.items():
        largest = 2 ** (BITS[name] - 1) - 1
        codes = (draw(shape, -largest, largest) + draw(shape, -largest, largest)) // 2
        scale = (draw(shape[:-1], 1, 2047) / 2**14).half()
        matrices[name] = QuantizedTensor(ROLE_OF[name], BITS[name], codes.to(torch.int8), scale)
    vectors = {name: (draw(shape, -2047, 2047) / 2**10).half() for name, shape in vector_shapes(CONFIG).items()}
    return QuantizedState(matrices, vectors)


def _numbers() -> Iterator[int]:
    state = 1
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield state >> 33


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names and float32 values."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode() + tensor.numpy().astype("<f4").tobytes())
    return total.hexdigest()


def write_golden(path: Path, coder: str) -> None:
    write_artifact(path, golden_state(), config=CONFIG, recurrent=True, tokenizer_sha256=TOKENIZER, coder=coder)


if __name__ == "__main__":
    name = sys.argv[1]
    write_golden(FOLDER / f"{name}.golf", name)
    print(f'    "{name}": "{hashlib.sha256((FOLDER / f"{name}.golf").read_bytes()).hexdigest()}",')
