"""Triton's kernels go through its compiler for GPUs that are not here, at the recipe's sizes, and fit on them."""

import json
from pathlib import Path

import pytest
from without_gpu import needs_triton, run_python

pytestmark = needs_triton

SCRIPT = Path(__file__).with_name("compile_kernels.py")


def compiled(folder: Path, capability: int, *parts: str) -> tuple[dict[str, int], list[str]]:
    """Bytes of shared memory by kernel, and all kernels there are; nothing is cached."""
    printed = run_python(str(SCRIPT), str(capability), *parts, TRITON_CACHE_DIR=str(folder))
    shared, kernels = map(json.loads, printed.splitlines())
    return shared, kernels


@pytest.mark.parametrize("capability", [90, 100])
def test_all_kernels_fit_where_auto_takes_them(tmp_path: Path, capability: int) -> None:
    shared, kernels = compiled(tmp_path, capability)
    assert sorted(shared) == sorted(kernels)
    assert max(shared.values()) <= 227 * 1024


@pytest.mark.parametrize("capability", [80, 120])
def test_the_search_of_the_export_fits_on_any_gpu(tmp_path: Path, capability: int) -> None:
    """It runs wherever the weights are on a GPU."""
    shared, _ = compiled(tmp_path, capability, "search")
    assert list(shared) == ["triton_search._search_kernel"] and shared.popitem()[1] <= 48 * 1024
