"""A profiler's trace of the real program: nothing in a steady step waits for the device to run dry."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_run import write_gpu_recipe
from small_run import make_data

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("prepared"))


def trace(data: Path, folder: Path, devices: int) -> dict[str, Any]:
    recipe = write_gpu_recipe(folder, data, devices)
    out = folder / "steady.json"
    command = [sys.executable, "-m", "golf_lightning", "fit", "--config", str(recipe)]
    command += ["--trainer.callbacks+=steady_trace.SteadyTrace", f"--trainer.callbacks.out={out}"]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("devices", [1, 2])
def test_a_steady_step_never_lets_the_device_run_dry(data: Path, tmp_path: Path, devices: int) -> None:
    if torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} CUDA devices")
    seen = trace(data, tmp_path, devices)
    assert seen["kernels"] > 100 * seen["steps"]
    # The one wait is for the packed all-reduce of two steps ago, which carries clock and signals: it keeps the host
    # from running further ahead. Any other (a stream, the device, a pageable copy) would be a synchronization.
    assert set(seen["calls"]) <= {"cudaEventSynchronize"}, seen
    assert all(microseconds > 0 for microseconds in seen["queued_us"]), seen
