"""Triton's kernels on a machine without a GPU, each script in a process of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")


def _run(arguments: tuple[str, ...], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True)


def run_python(*arguments: str, **environment: str) -> str:
    """What Python prints for these arguments; its errors are those of the test."""
    done = _run(arguments, environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def interpret(script: str, *arguments: str) -> None:
    """Run a script whose kernels Triton's interpreter computes; it is chosen when triton is imported."""
    done = _run(("-c", script, *arguments), {"TRITON_INTERPRET": "1"})
    if "only 0-dimensional arrays" in done.stderr:
        pytest.skip("Triton's interpreter does not work with this numpy")
    assert done.returncode == 0, done.stderr
