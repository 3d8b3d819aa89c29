"""What the module does to a process."""

import pytest
import torch

from golf_lightning.compression.export import ExportConfig
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.model.config import GPTConfig
from golf_lightning.module import GolfModule
from golf_lightning.optim.config import OptimizerConfig


def small_module() -> GolfModule:
    small = {"vocab_size": 16, "layers": 4, "width": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "mlp_width": 8}
    shape = GPTConfig(**small, rope_dims=2, loop_first=1, loop_last=1, lanes_start=3)  # type: ignore[arg-type]
    return GolfModule(shape, OptimizerConfig(), ExportConfig(), TTTConfig(), compile=False)


def test_beside_a_gpu_the_cpu_works_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that make a batch wait for each other where another program uses a core."""
    threads: list[int] = []
    module = small_module()
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for choice in ("choose_backend", "choose_kernels"):
        monkeypatch.setattr(f"golf_lightning.module.{choice}", lambda *arguments: None)
    module.settle(torch.device("cpu"))
    assert threads == []
    module.settle(torch.device("cuda"))
    assert threads == [1]


@pytest.mark.parametrize("lacks, told", [(None, "quack-kernels"), ("luck", "triton; quack-kernels' would need luck")])
def test_a_module_tells_what_computes_what(monkeypatch: pytest.MonkeyPatch, lacks: str | None, told: str) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for choice, chosen in (("choose_backend", "fa4"), ("choose_kernels", "triton"), ("cute_lacks", lacks)):
        monkeypatch.setattr(f"golf_lightning.module.{choice}", lambda *_, chosen=chosen: chosen)
    module = small_module()
    module.settle(torch.device("cuda"))
    assert module.backends == {"attention": "fa4", "kernels": "triton", "MLP products": told}


def test_without_fused_kernels_nothing_is_told_of_products() -> None:
    module = small_module()
    module.settle(torch.device("cpu"))
    assert module.backends == {"attention": "segments", "kernels": "reference"}
