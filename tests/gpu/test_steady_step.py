"""A profiler's trace of the real program: nothing in a steady step waits for the device to run dry."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import steady_trace
import torch
from gpu_run import write_gpu_recipe
from small_run import make_data
from steady_trace import MARK, SteadyTrace


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("prepared"))


def trace(data: Path, folder: Path, devices: int) -> dict[str, Any]:
    recipe = write_gpu_recipe(folder, data, devices)
    out = folder / "steady.json"
    command = [sys.executable, "-m", "golf_lightning", "fit", "--config", str(recipe)]
    command += ["--trainer.callbacks+=steady_trace.SteadyTrace", f"--trainer.callbacks.out={out}"]
    path = os.pathsep.join([str(Path(steady_trace.__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def call(name: str, begin: float, length: float, correlation: int, cat: str = "cuda_runtime") -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": length, "args": {"correlation": correlation}}


def test_the_trace_tells_waits_and_what_the_device_still_had_to_do() -> None:
    """A kernel launched before the marked steps, one launched in them, and two waits: one ends too late."""
    events = [
        {"ph": "X", "cat": "user_annotation", "name": MARK, "ts": 100.0, "dur": 200.0},
        call("cudaLaunchKernel", 90.0, 1.0, 1),
        call("kernel_a", 95.0, 55.0, 1, "kernel"),
        call("cudaEventSynchronize", 110.0, 10.0, 2),
        call("cudaLaunchKernel", 130.0, 1.0, 3),
        call("kernel_b", 150.0, 30.0, 3, "kernel"),
        call("cudaStreamSynchronize", 140.0, 60.0, 4),
        call("cudaMemcpyAsync", 210.0, 1.0, 5),
        call("cudaDeviceSynchronize", 400.0, 1.0, 6),
    ]
    summary = SteadyTrace("unused.json", first=8, last=11)._summary(events)
    assert summary["calls"] == {"cudaEventSynchronize": 1, "cudaStreamSynchronize": 1}
    assert summary["queued_us"] == [30.0, -20.0]
    assert (summary["steps"], summary["kernels"]) == (3, 2)


def test_the_trace_tells_what_communication_costs_beside_other_work() -> None:
    """30 us of NCCL, of which a product hides 20; a copy of another 50 us later, in two steps."""
    events = [
        {"ph": "X", "cat": "user_annotation", "name": MARK, "ts": 0.0, "dur": 100.0},
        call("cudaLaunchKernel", 1.0, 1.0, 1),
        call("ncclDevKernel_ReduceScatter", 20.0, 30.0, 1, "kernel"),
        call("cudaLaunchKernel", 3.0, 1.0, 2),
        call("product", 10.0, 30.0, 2, "kernel"),
        call("cudaMemcpyAsync", 5.0, 1.0, 3),
        call("copy", 160.0, 50.0, 3, "gpu_memcpy"),
    ]
    summary = SteadyTrace("unused.json", first=8, last=10)._summary(events)
    assert summary["step_ms"] == pytest.approx(0.1)
    assert summary["nccl_ms"] == pytest.approx(0.015)
    assert summary["nccl_alone_ms"] == pytest.approx(0.005)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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
