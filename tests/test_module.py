"""What the module does to a process."""

import pytest
import torch

from golf_lightning.compression.export import ExportConfig
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.model.config import GPTConfig
from golf_lightning.module import GolfModule
from golf_lightning.optim.config import OptimizerConfig


def test_beside_a_gpu_the_cpu_works_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that make a batch wait for each other where another program uses a core."""
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for choice in ("choose_backend", "choose_kernels"):
        monkeypatch.setattr(f"golf_lightning.module.{choice}", lambda *arguments: None)
    small = {"vocab_size": 16, "layers": 4, "width": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "mlp_width": 8}
    shape = GPTConfig(**small, rope_dims=2, loop_first=1, loop_last=1, lanes_start=3)  # type: ignore[arg-type]
    module = GolfModule(shape, OptimizerConfig(), ExportConfig(), TTTConfig(), compile=False)
    module.settle(torch.device("cpu"))
    assert threads == []
    module.settle(torch.device("cuda"))
    assert threads == [1]
