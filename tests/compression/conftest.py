import sys
from pathlib import Path

import pytest
from torch import Tensor

# Spawned ranks must import the same helpers by name, and pytest's importlib mode adds no folder for them.
sys.path.insert(0, str(Path(__file__).parent))

from small_gpt import CONFIG, packed_batch, small_gpt

from golf_lightning.compression.banks import quantize_state
from golf_lightning.compression.quantize import QuantizationConfig, QuantizedState
from golf_lightning.data.batch import PackedBatch
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT


@pytest.fixture
def config() -> GPTConfig:
    return CONFIG


@pytest.fixture
def batches() -> list[PackedBatch]:
    return [packed_batch(seed) for seed in range(3)]


@pytest.fixture
def model() -> GPT:
    return small_gpt()


@pytest.fixture
def random_state(model: GPT) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def quantized(random_state: dict[str, Tensor], config: GPTConfig) -> QuantizedState:
    return quantize_state(random_state, None, config, QuantizationConfig(method="rtn"))[0]
