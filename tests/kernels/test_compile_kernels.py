"""Triton's kernels go through its compiler for GPUs that are not here, at the recipe's sizes, and fit on them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")

SCRIPT = Path(__file__).with_name("compile_kernels.py")


def compiled(folder: Path, capability: int, *parts: str) -> tuple[dict[str, int], list[str]]:
    """Bytes of shared memory by kernel, and all kernels there are; in a process of its own, with nothing cached."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, str(SCRIPT), str(capability), *parts]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shared, kernels = map(json.loads, done.stdout.splitlines())
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
