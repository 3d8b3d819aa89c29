"""The folder of a run: everything a run writes is in ``runs/NAME/``."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from golf_lightning.errors import GolfError
from golf_lightning.files import read_json
from golf_lightning.reporting.loggers import METRICS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ("golf_lightning", "callbacks")
PACKAGES = (
    "torch",
    "lightning",
    "jsonargparse",
    "torchmetrics",
    "sentencepiece",
    "numpy",
    "scipy",
    "brotli",
    "constriction",
    "triton",
    "flash-attn-4",
    "quack-kernels",
    "nvidia-cutlass-dsl",
)

COMMANDS = ("fit", "validate", "export", "test")
RESULTS = {"fit": "result.json", "validate": "validate.json", "export": "export.json", "test": "test.json"}
"""Where each command writes its figures."""

LOG = "log.txt"
CHECKPOINT = Path("checkpoints") / "last.ckpt"
ARTIFACT = "artifact.golf"


def named(stem: str, suffix: str, command: str) -> str:
    """A file's name: ``config.yaml`` of ``fit``, ``config.test.yaml`` of ``test``."""
    return f"{stem}{suffix}" if command == "fit" else f"{stem}.{command}{suffix}"


def last_checkpoint(trainer: pl.Trainer) -> Path:
    """Where the newest checkpoint of a run lies."""
    return Path(trainer.default_root_dir) / CHECKPOINT


def artifact_path(trainer: pl.Trainer) -> Path:
    """Where a run's artifact lies."""
    return Path(trainer.default_root_dir) / ARTIFACT


def refuse_to_replace(folder: Path, command: str, model_file: str | None) -> None:
    """Ask before something is replaced that took long to make.

    Args:
        folder: the run's folder.
        command: the subcommand about to run.
        model_file: the checkpoint or artifact that it starts from; a run may be continued in its own folder.

    Raises:
        GolfError: ``fit`` finds another run, ``export`` an artifact or ``test`` a score.
    """
    checkpoint, artifact, scores = folder / CHECKPOINT, folder / ARTIFACT, folder / RESULTS["test"]
    own = model_file is not None and Path(model_file).resolve().parent == checkpoint.resolve().parent
    if command == "fit" and not own and checkpoint.exists():
        raise GolfError(
            f"{folder} already holds a run; choose another --run.name, continue it with "
            f"--ckpt_path {checkpoint}, or train it again with --run.overwrite true."
        )
    if command == "export" and artifact.exists():
        raise GolfError(
            f"{artifact} already exists; choose another --run.name, or replace it with --run.overwrite true."
        )
    # A score that was interrupted is no score yet, and may be done to its end.
    if command == "test" and scores.exists() and _is_finished(scores):
        raise GolfError(
            f"{scores} already holds a score; choose another --run.name, or score again with --run.overwrite true."
        )


def _is_finished(result: Path) -> bool:
    return read_json(result).get("run", {}).get("status", "finished") == "finished"


def clear(folder: Path) -> None:
    """Remove what an earlier run wrote, so that nothing of it stands beside a new run's files. Other files stay."""
    for command in COMMANDS:
        for stem, suffix in (("access", ".json"), ("config", ".yaml"), ("documents", ".csv"), ("environment", ".json")):
            (folder / named(stem, suffix, command)).unlink(missing_ok=True)
        (folder / RESULTS[command]).unlink(missing_ok=True)
    for name in (LOG, ARTIFACT, "ttt.png"):
        (folder / name).unlink(missing_ok=True)
    for path in (folder / METRICS, folder / CHECKPOINT.parent, *folder.glob("*_unfinished")):
        if path.is_dir():
            shutil.rmtree(path)


def environment(world_size: int = 1) -> dict[str, Any]:
    """What the run runs on, as JSON values: command, interpreter, packages, program and hardware, but no host's name.

    Args:
        world_size: processes of the run.
    """
    cuda = torch.cuda.is_available()
    return {
        "command": _command(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        **_commit(ROOT),
        "sources": sources_digest(ROOT),
        "ranks": world_size,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "cuda": torch.version.cuda,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def _command() -> list[str]:
    """The command line as a user would type it, without the folder that Python found the program in."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py" and program.parent.name == "golf_lightning":
        return ["python", "-m", "golf_lightning", *sys.argv[1:]]
    return [program.name, *sys.argv[1:]]


def _commit(root: Path) -> dict[str, Any]:
    """The checkout's commit, and whether files that git knows differ from it; nulls outside a checkout."""
    commit = dirty = None
    # An installed package may lie inside somebody else's repository.
    if _output("git", "-C", str(root), "rev-parse", "--show-toplevel") == str(root):
        commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
        dirty = commit and _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no") is not None
    return {"commit": commit, "dirty": dirty}


def sources_digest(root: Path) -> str | None:
    """SHA-256 over the Python files of the program, which tells two programs apart where there is no commit.

    Args:
        root: folder of the two packages.

    Returns:
        The digest, or ``None`` in a bundled program, whose files are minified; it is known by lacking the bundler.
    """
    if not (root / "golf_lightning" / "submission" / "bundle.py").is_file():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for name in PROGRAM for path in (root / name).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """First line of a command's output, or ``None`` where there is none, or the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None
