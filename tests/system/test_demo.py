"""The demo learns: 35 of its steps on its own text, with its own model."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from small_run import golf

from golf_lightning.data.demo_text import demo_documents, find_messages

pytestmark = pytest.mark.slow
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def order_0_entropy(texts: list[str]) -> float:
    """Bits per byte of a code that knows the bytes' frequencies and nothing else."""
    counts = Counter("".join(texts).encode())
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def test_the_demo_ends_below_2_6_bits_per_byte_and_far_below_order_0(tmp_path: Path) -> None:
    assert golf("prepare", "demo", tmp_path / "data", "--workers", 1, "--quiet") == 0
    options = {
        "--data.folder": tmp_path / "data",
        "--run.root": tmp_path / "runs",
        "--clock.budget_s": "null",
        "--trainer.max_steps": 35,
        # Only what the artifact holds is scored.
        "--trainer.limit_val_batches": 0,
        # A small part of what export usually looks at: it shows here that it works, not how well.
        "--model.export.calibration_batches": 4,
        "--model.export.sensitivity_batches": 2,
        "--ttt.enabled": "false",
    }
    arguments = [argument for option in options.items() for argument in option]
    assert golf("fit", "--config", DEMO, *arguments) == 0
    (score,) = json.loads((tmp_path / "runs" / "demo" / "result.json").read_text())["scores"].values()
    entropy = order_0_entropy(demo_documents(find_messages())["val"])
    assert 4 < entropy < 5
    assert score["bpb"] < min(2.6, entropy)
    assert score["bpb"] == score["bpb_text"]
