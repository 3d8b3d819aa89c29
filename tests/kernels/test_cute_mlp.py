"""The MLP's products by quack-kernels: when they are chosen, what they are told, and that all callers ask for them."""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import pack, random_model, small_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from golf_lightning.errors import GolfError
from golf_lightning.kernels import backend, cute_mlp
from golf_lightning.kernels import mlp as facade
from golf_lightning.kernels.backend import QUACK_VERSION, chooses_cute, cute_lacks
from golf_lightning.kernels.cute_mlp import PRODUCT_TILES, cute_hidden, cute_product, formulas
from golf_lightning.kernels.mlp import mlp, sloped_product
from golf_lightning.kernels.residual import add_branches
from golf_lightning.model import gpt

GPU, BF16 = torch.device("cuda"), torch.bfloat16


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What is cached about the package belongs to one test."""
    caches = (backend._cute_package_lacks, cute_mlp.epilogues, cute_mlp._options)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


class Epilogue:
    """The package's product, computed with torch: the same call, the function applied to the whole product at once."""

    def __init__(self, package: Any, function: Callable[..., dict[str, Tensor]], outputs: tuple[str, ...]) -> None:
        self.package, self.function, self.outputs = package, function, outputs

    def gemm(
        self, a: Tensor, b: Tensor, d: Tensor, c: Tensor | None = None, *, epi_args: dict[str, Tensor],
        b_kn: bool = False, post_init_attrs: tuple[tuple[str, Any], ...], **schedule: Any,
    ) -> None:  # fmt: skip
        results = self.function(a @ (b if b_kn else b.T), *([] if c is None else [c]))
        assert set(results) == {"D", *self.outputs} and set(epi_args) == set(self.outputs)
        for name, out in {"D": d, **epi_args}.items():
            out.copy_(results[name])
        self.package.calls.append((post_init_attrs, tuple(schedule.items())))


def pieces(tile: Any, atoms: Any, dtype: Any = None, epi_tile_override: Any = None) -> Any:
    """The package's choice of the epilogue's piece, which takes another's choice by the name that it has there."""
    return epi_tile_override or (64, 32)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in that computes with torch and remembers how it was called."""
    found = SimpleNamespace(calls=[])
    modules = {name: ModuleType(name) for name in ("cutlass", "cutlass.cute", "quack", "quack.epilogue")}
    modules["cutlass"].cute = found.cute = modules["cutlass.cute"]  # type: ignore[attr-defined]
    found.cute.arch = SimpleNamespace(fmax=torch.maximum)
    found.frontend = modules["quack.epilogue.frontend"] = ModuleType("quack.epilogue.frontend")
    found.frontend.gemm_epilogue = lambda outputs=(): lambda function: Epilogue(found, function, outputs)
    modules["quack.gemm_sm90"] = ModuleType("quack.gemm_sm90")
    modules["quack.gemm_sm90"].GemmSm90 = SimpleNamespace(_compute_tile_shape_or_override=pieces)  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.fixture
def hopper(package: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine where nothing is missing; the package's version and the chip's capability may be changed."""
    package.version, package.capability = QUACK_VERSION, (9, 0)

    def version(name: str) -> str:
        assert name == "quack-kernels"
        if package.version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(package.version)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: package.capability)
    return package


def test_they_are_chosen_where_nothing_is_missing(hopper: Any) -> None:
    assert cute_lacks("auto", GPU, BF16) is None
    assert chooses_cute("auto", GPU, BF16)


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_an_explicit_choice_of_kernels_is_kept(hopper: Any, choice: Any) -> None:
    assert cute_lacks(choice, GPU, BF16) == "--model.kernels auto"
    assert not chooses_cute(choice, GPU, BF16)


@pytest.mark.parametrize("device, capability", [("cpu", (9, 0)), ("cuda", (8, 0)), ("cuda", (10, 0))])
def test_another_chip_does_without_them(hopper: Any, device: str, capability: tuple[int, int]) -> None:
    hopper.capability = capability
    assert cute_lacks("auto", torch.device(device), BF16) == "a GPU of compute capability 9.0"


def test_another_dtype_does_without_them(hopper: Any) -> None:
    assert cute_lacks("auto", GPU, torch.float16) == "compute dtype bfloat16"


@pytest.mark.parametrize("version", [None, "0.6.4", "0.7.0"])
def test_an_unknown_version_is_not_called(hopper: Any, version: str | None) -> None:
    hopper.version = version
    hopper.frontend.gemm_epilogue = None
    expected = f"quack-kernels 0.6.5, not {version or 'none'} (pip install quack-kernels==0.6.5)"
    assert cute_lacks("auto", GPU, BF16) == expected


def test_a_package_that_lacks_its_own_packages_is_not_called(hopper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cutlass.cute", None)
    lacks = cute_lacks("auto", GPU, BF16)
    assert lacks is not None and lacks.startswith("quack-kernels 0.6.5 with all that it needs (")


def test_a_compiler_without_the_function_we_need_is_not_called(hopper: Any) -> None:
    del hopper.cute.arch.fmax
    lacks = cute_lacks("auto", GPU, BF16)
    assert lacks is not None and "fmax" in lacks


def test_a_package_that_refuses_our_formulas_is_not_called(hopper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise TypeError("epilogue fn depends on\n a context")

    hopper.frontend.gemm_epilogue = refuse
    lacks = cute_lacks("auto", GPU, BF16)
    assert lacks is not None and lacks.endswith("(epilogue fn depends on a context)")


def test_the_package_is_asked_once(hopper: Any) -> None:
    assert chooses_cute("auto", GPU, BF16)
    hopper.version = None
    assert chooses_cute("auto", GPU, BF16)


def test_formulas_are_the_activation_and_its_derivative() -> None:
    z = torch.linspace(-3, 3, 61, dtype=torch.float64).requires_grad_()
    expected = F.leaky_relu(z, 0.5).square()
    (slope,) = torch.autograd.grad(expected.sum(), z)
    hidden_and_slope, sloped = formulas(torch.maximum)
    torch.testing.assert_close(hidden_and_slope(z.detach()), {"D": expected.detach(), "slope": slope})
    torch.testing.assert_close(sloped(z.detach(), slope), {"D": z.detach() * slope})


def doubles(*shapes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


def test_the_package_is_told_which_matrix_is_which(package: Any) -> None:
    x, up, dout, down = doubles((5, 16), (24, 16), (5, 16), (16, 24))
    expected = facade.hidden_and_slope(x, up)
    torch.testing.assert_close(cute_hidden(x, up), expected)
    torch.testing.assert_close(cute_product(dout, down, expected[1]), sloped_product(dout, down, expected[1]))


def test_no_tokens_launch_nothing(package: Any) -> None:
    x, up, down, slope = doubles((0, 16), (24, 16), (16, 24), (0, 24))
    assert [tuple(out.shape) for out in (*cute_hidden(x, up), cute_product(x, down, slope))] == [(0, 24)] * 3
    assert package.calls == []


def test_the_schedule_is_what_was_measured_and_equal_in_every_call(package: Any) -> None:
    dout, down, slope = doubles((5, 16), (16, 24), (5, 24))
    cute_product(dout, down, slope)
    cute_product(dout[:2], down, slope[:2])
    assert len(set(package.calls)) == 1  # plans and kernels are found by these
    attributes, schedule = package.calls[0]
    values, set_attributes = dict(schedule), dict(attributes)
    assert (values["tile_M"], values["tile_N"]) == (PRODUCT_TILES.rows, PRODUCT_TILES.columns)
    assert (values["cluster_M"], values["cluster_N"], values["pingpong"]) == (2, 1, True)
    assert set_attributes["use_pdl"] is False
    assert set_attributes["_compute_tile_shape_or_override"]((128, 192, 64), (1, 1, 1), BF16) == (64, 64)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Triton's launches, replaced by ones that only say that they were called."""
    called: list[str] = []
    module: Any = ModuleType("golf_lightning.kernels.triton_mlp")
    for name in ("launch_hidden", "launch_product"):
        setattr(module, name, lambda *_, name=name: called.append(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return called


def test_the_gpu_runs_what_was_chosen(package: Any, triton: list[str]) -> None:
    x, up, dout, down, slope = doubles((5, 16), (24, 16), (5, 16), (16, 24), (5, 24))
    torch.testing.assert_close(facade._hidden_on_gpu(x, up, True), facade.hidden_and_slope(x, up))
    torch.testing.assert_close(facade._product_on_gpu(dout, down, slope, True), sloped_product(dout, down, slope))
    assert (len(package.calls), triton) == (2, [])
    facade._hidden_on_gpu(x, up)
    facade._product_on_gpu(dout, down, slope)
    assert (len(package.calls), triton) == (2, ["launch_hidden", "launch_product"])


@pytest.mark.parametrize("cute", [True, False])
@pytest.mark.parametrize("width, units", [(12, 16), (16, 12)])
def test_rows_that_no_copy_engine_takes_are_refused(
    package: Any, triton: list[str], width: int, units: int, cute: bool
) -> None:
    x, up, down, slope = (torch.zeros(*s, dtype=BF16) for s in ((2, width), (units, width), (width, units), (2, units)))
    with pytest.raises(GolfError, match=f"multiples of 8, not {width} and {units}; choose --model.kernels reference"):
        facade._hidden_on_gpu(x, up, cute)
    with pytest.raises(GolfError, match=f"multiples of 8, not {width} and {units}; choose --model.kernels reference"):
        facade._product_on_gpu(x, down, slope, cute)


class Choices(TorchDispatchMode):
    """Which products each operator of the MLP asked for, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := op._schema.name).startswith("golf::mlp_hidden"):
            self.seen.append((name.removeprefix("golf::mlp_hidden"), args[-1] is True))
        return op(*args, **(kwargs or {}))


BOTH = [("", True), ("_backward", True)]


def test_the_mlp_asks_for_them_forward_and_backward() -> None:
    inputs = [x.requires_grad_() for x in doubles((5, 16), (24, 16), (16, 24))]
    with Choices() as choices:
        mlp(*inputs, backend="triton", cute=True).sum().backward()
        with torch.no_grad():
            mlp(*inputs, observe=lambda _: None, backend="triton", cute=True)
    assert choices.seen == [*BOTH, ("", True)]


def test_a_layer_asks_for_them_and_has_the_gradients_of_the_parts() -> None:
    def results(**how: Any) -> list[Tensor]:
        u, y, *weights = doubles((5, 16), (5, 16), (16, 16), (24, 16), (16, 24))
        leaves = [x.requires_grad_() for x in (y, *weights)]
        x = add_branches(u * 1, leaves[0], leaves[1], 0.7, leaves[2], leaves[3], **how)
        return [x.detach(), *torch.autograd.grad(x.square().sum(), leaves)]

    with Choices() as choices:
        found = results(backend="triton", cute=True)
    assert choices.seen == BOTH
    torch.testing.assert_close(found, results())


def test_a_model_asks_for_them_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "choose_kernels", lambda *_: "triton")
    monkeypatch.setattr(gpt, "chooses_cute", lambda *_: True)
    model = random_model(small_config(), attention="reference")
    tokens, cu_seqlens = pack(torch.randint(0, 50, (9,)), torch.randint(0, 50, (12,)), padding=0)
    with Choices() as choices:
        model(tokens, tokens, cu_seqlens).sum().backward()
    assert choices.seen == [BOTH[0]] * model.plan.depth + [BOTH[1]] * model.plan.depth
