"""Compiled code goes to the folder that the user names, and traced graphs with own functions are kept too."""

import os
import time
import warnings
from pathlib import Path

import pytest
import torch
from programs import Program, Work

from golf_lightning.kernels.mixing import Blend, Wanted, mix
from golf_lightning.kernels.mixing_ops import FusedMix
from golf_lightning.optim.warmup import compile_in_place, keep_compiled_code, process_seconds


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_code_is_kept_in_the_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", "QUACK_CACHE_DIR",
    ):  # fmt: skip
        monkeypatch.setenv(name, os.environ.get(name, ""))  # restored afterwards
    keep_compiled_code(tmp_path / "cache")
    assert os.environ["QUACK_CACHE_DIR"] == str(tmp_path / "cache" / "quack")
    x = torch.randn(7)
    torch.testing.assert_close(torch.compile(lambda y: (y * 2).relu() + 7)(x), (x * 2).relu() + 7)
    assert any((tmp_path / "cache" / "inductor").rglob("*.cpp"))


class Mixed(torch.nn.Module):
    """A weighted sum by the fused operator, which has gradients of its own."""

    def forward(self, x_TD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        return mix([Wanted(Blend(((weight_D, x_TD), (1.0, x_TD.sin()))), True)], backend="triton")[0]


def trace(arguments: list[str]) -> int:
    """Compile a network, with other gradients if the argument says so, and print what became of the traced graph."""
    warnings.simplefilter("ignore")
    if arguments == ["changed"]:
        through = FusedMix.backward
        FusedMix.backward = staticmethod(lambda ctx, *grads: through(ctx, *(2 * grad for grad in grads)))  # type: ignore[method-assign]
    model = Mixed()
    compile_in_place(model)  # type: ignore[arg-type]
    model(torch.ones(8, 4, requires_grad=True), torch.ones(4, requires_grad=True)).sum().backward()
    print(dict(torch._dynamo.utils.counters["aot_autograd"]))
    return 0


def output_of(work: Work, *arguments: str, folder: Path) -> str:
    """What a process of its own prints."""
    program = Program(work, *arguments, folder=folder)
    output, errors = program.communicate(timeout=200)
    assert program.returncode == 0, errors
    return output


def test_traced_graphs_are_found_by_the_next_process_and_not_by_one_with_other_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    counts = [output_of(trace, variant, folder=tmp_path) for variant in ("same", "same", "changed")]
    found = ["autograd_cache_hit" if "autograd_cache_hit" in count else count for count in counts]
    assert found[1] == "autograd_cache_hit"
    assert "autograd_cache_miss" in found[0] and "autograd_cache_miss" in found[2]


class Value:
    def __str__(self) -> str:
        raise AssertionError("described")

    __repr__ = __str__


def describe(arguments: list[str]) -> int:
    """Let torch tell of an operator after :func:`compile_in_place`, whose change of torch stays in this process."""
    from torch._inductor.exc import LoweringException, MissingOperatorWithoutDecomp

    compile_in_place(Mixed())  # type: ignore[arg-type]
    add = torch.ops.aten.add.Tensor
    print(LoweringException(ValueError("wrong"), add, [Value()], {"alpha": Value()}))
    print(MissingOperatorWithoutDecomp.operator_str(add, [Value()], {}))
    return 0


def test_operators_are_described_without_the_network_before_them(tmp_path: Path) -> None:
    told = output_of(describe, folder=tmp_path)
    assert "ValueError: wrong" in told
    assert told.count("aten.add.Tensor") == 2


def grow_older(arguments: list[str]) -> int:
    time.sleep(0.2)
    print(process_seconds())
    return 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system tells no process's age")
def test_the_age_of_the_process_is_told_in_seconds(tmp_path: Path) -> None:
    began = time.perf_counter()
    told = float(output_of(grow_older, folder=tmp_path))
    assert 0.18 < told < time.perf_counter() - began + 0.1
    first = process_seconds()
    time.sleep(0.2)
    assert first is not None and (process_seconds() or 0.0) - first > 0.15
