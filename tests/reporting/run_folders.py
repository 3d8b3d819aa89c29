"""Run folders with chosen figures, as a run would leave them."""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from golf_lightning.reporting.documents import DocumentTable

TARGETS, BYTES = 1000, 3730


def score(nats_per_target: float, targets: int = TARGETS, partial: bool = False) -> dict[str, Any]:
    table_bytes = targets * BYTES // TARGETS
    nats = nats_per_target * targets
    return {
        "bpb": nats / math.log(2) / table_bytes,
        "nats_per_target": nats_per_target,
        "nats": nats,
        "targets": targets,
        "table_bytes": table_bytes,
        "partial": partial,
    }


def result(scores: dict[str, dict[str, Any]], ended: str = "2026-11-23T10:00:00+00:00", **run: Any) -> dict[str, Any]:
    return {
        "run": {"command": "fit", "status": "finished", "finished": ended} | run,
        "data": {"fingerprint": "ab", "train_tokens": 5000, "train_table_bytes": 18650},
        "model": {"parameters": 12345},
        "train": {"steps": 40, "tokens": 40000, "tokens_per_second": 1e6, "loss": 3.2, "recurrent_from_step": 14},
        "scores": scores,
        "artifact": {
            "artifact_bytes": 9_000_000,
            "code_bytes": 26_505,
            "limit_bytes": 16_000_000,
            "total_bytes": 9_026_505,
            "headroom_bytes": 6_973_495,
            "sha256": "one",
        },
        "export": {"bytes_by_role": {"attention": 3_000_000, "mlp": 5_000_000, "embedding": 999_000, "header": 1_000}},
        "ledger": {"train": 40.0, "compile": 5.0, "score": 12.0},
    }


def curve(steps: Iterable[int], seconds_per_step: float = 1.0) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "train/loss": 3.0 + 5.0 / (1 + step),
            "train/seconds": step * seconds_per_step,
            "train/tokens_per_second": 1e6,
            "train/lr": 0.02,
            "train/momentum": 0.95,
            "train/grad_norm": 0.5,
            "train/recurrent": float(step >= 14),
        }
        for step in steps
    ]


def write_curve(folder: Path, rows: list[dict[str, float]], version: int = 0) -> None:
    path = folder / "metrics" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


def documents(gain: float = 0.01) -> DocumentTable:
    targets = np.array([10, 60, 65, 400, 465])
    nats = targets * 3.0
    return DocumentTable(targets, targets * 4, {"ttt_lr0": nats, "ttt": nats - gain * targets})


def make_run(root: Path, name: str, nats: float = 3.0, *, seed: int = 42, lr: float = 0.022, **run: Any) -> Path:
    """A whole run whose score after test-time training is ``nats`` per target."""
    folder = root / name
    folder.mkdir(parents=True)
    config = {
        "seed_everything": seed,
        "run": {"name": name},
        "model": {"optimizer": {"muon_lr": lr}, "ttt": {"seed": seed}},
        "config": [f"{name}.yaml"],
        "ckpt_path": None,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(folder / "environment.json", {"commit": "c0ffee", "dirty": False, "gpus": ["H100"], "ranks": 8})
    above = {"before_quantization": 0.02, "quantized": 0.03, "ttt_lr0": 0.01, "ttt": 0.0}
    write_json(folder / "result.json", result({key: score(nats + more) for key, more in above.items()}, **run))
    write_curve(folder, [*curve(range(2, 41, 2)), {"step": 39, "val/bpb": 1.2, "val/nats_per_target": 3.02}])
    documents().write(folder / "documents.csv")
    return folder
