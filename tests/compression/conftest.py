import pytest
from small_gpt import CONFIG, packed_batch, small_gpt
from torch import Tensor

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
