"""The folder of a run: everything a run writes is in ``runs/NAME/``."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

PACKAGES = ("torch", "lightning", "jsonargparse", "torchmetrics", "sentencepiece", "numpy", "triton", "flash-attn-4")


def last_checkpoint(trainer: pl.Trainer) -> Path:
    """Where the newest checkpoint of a run lies."""
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


def artifact_path(trainer: pl.Trainer) -> Path:
    """Where a run's artifact lies."""
    return Path(trainer.default_root_dir) / "artifact.golf"


def environment() -> dict[str, Any]:
    """What the run ran on, as JSON values: interpreter, packages, commit and GPUs."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "command": sys.argv,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """First line of a command's output, or ``None`` where the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None
