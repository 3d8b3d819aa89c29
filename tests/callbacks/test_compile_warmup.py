"""Compiled code goes to the folder that the user names, and traced graphs with own functions are kept too."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from golf_lightning.optim.warmup import keep_compiled_code, process_seconds


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_code_is_kept_in_the_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    ):  # fmt: skip
        monkeypatch.setenv(name, os.environ.get(name, ""))  # restored afterwards
    keep_compiled_code(tmp_path / "cache")
    x = torch.randn(7)
    torch.testing.assert_close(torch.compile(lambda y: (y * 2).relu() + 7)(x), (x * 2).relu() + 7)
    assert any((tmp_path / "cache" / "inductor").rglob("*.cpp"))


TRACED = """
import sys, torch, warnings
warnings.simplefilter("ignore")
from golf_lightning.model import gpt
from golf_lightning.model.config import GPTConfig
from golf_lightning.kernels.mixing_ops import FusedMix
from golf_lightning.optim.warmup import compile_in_place
gpt.choose_kernels = torch.compiler.assume_constant_result(lambda *_: "triton")
if sys.argv[1] == "changed":
    through = FusedMix.backward
    FusedMix.backward = staticmethod(lambda ctx, *grads: through(ctx, *(2 * grad for grad in grads)))
shape = dict(layers=1, vocab_size=8, width=8, heads=1, kv_heads=1, head_dim=8, mlp_width=8, rope_dims=0, max_seqlen=8)
model = gpt.GPT(GPTConfig(**shape, loop_first=0, loop_last=0, loop_passes=1, lanes="none"), attention="reference")
compile_in_place(model)
tokens = torch.arange(8)
model(tokens, tokens, torch.tensor([0, 8], dtype=torch.int32)).sum().backward()
print(dict(torch._dynamo.utils.counters["aot_autograd"]))
"""


def test_traced_graphs_are_found_by_the_next_process_and_not_by_one_with_other_gradients(tmp_path: Path) -> None:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    counts = [
        subprocess.run(
            [sys.executable, "-c", TRACED, variant], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for variant in ("same", "same", "changed")
    ]
    found = ["autograd_cache_hit" if "autograd_cache_hit" in count else count for count in counts]
    assert found[1] == "autograd_cache_hit"
    assert "autograd_cache_miss" in found[0] and "autograd_cache_miss" in found[2]


DESCRIBED = """
import torch
from torch._inductor.exc import LoweringException, MissingOperatorWithoutDecomp
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.warmup import compile_in_place
compile_in_place(GPT(GPTConfig(layers=6, loop_first=1, loop_last=2, lanes_start=4, vocab_size=8, width=8, heads=1,
    kv_heads=1, head_dim=8, mlp_width=8, rope_dims=0, max_seqlen=8)))
class Value:
    def __str__(self):
        raise AssertionError("described")
    __repr__ = __str__
error = LoweringException(ValueError("wrong"), torch.ops.aten.add.Tensor, [Value()], {"alpha": Value()})
assert "ValueError: wrong" in str(error) and "aten.add.Tensor" in str(error), error
assert "aten.add.Tensor" in MissingOperatorWithoutDecomp.operator_str(torch.ops.aten.add.Tensor, [Value()], {})
"""


def test_operators_are_described_without_the_network_before_them() -> None:
    subprocess.run([sys.executable, "-c", DESCRIBED], check=True)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system tells no process's age")
def test_the_age_of_the_process_is_told_in_seconds() -> None:
    code = "import time; from golf_lightning.optim.warmup import process_seconds; print(process_seconds())"
    began = time.perf_counter()
    told = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.1 < told < time.perf_counter() - began + 0.1
    first = process_seconds()
    time.sleep(0.2)
    assert first is not None and (process_seconds() or 0.0) - first > 0.15
