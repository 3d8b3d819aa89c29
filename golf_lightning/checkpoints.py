"""Checkpoints that are written whole or not at all, and artifacts that load like checkpoints."""

import pickle
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from golf_lightning.compression.artifact import is_artifact, read_artifact
from golf_lightning.errors import GolfError
from golf_lightning.files import write_whole


class GolfCheckpointIO(TorchCheckpointIO):
    """Saves through a temporary file and reads checkpoints as tensors and plain values only, never code.

    An artifact given as ``--ckpt_path`` is turned into a checkpoint that holds its dequantized weights.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with write_whole(path) as file:
            torch.save(checkpoint, file)

    @override
    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(path)
        if not path.is_file():
            raise GolfError(f"The checkpoint {path} does not exist; check the path.")
        if is_artifact(path):
            return _from_artifact(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise GolfError(f"{path} is neither a checkpoint nor an artifact, or it is damaged.") from error


def _from_artifact(path: Path) -> dict[str, Any]:
    artifact = read_artifact(path)
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in artifact.state_dict().items()},
        "pytorch-lightning_version": lightning.__version__,
        "golf": {
            "gpt": artifact.config.to_dict(),
            "recurrent": artifact.recurrent,
            "tokenizer_sha256": artifact.tokenizer_sha256,
            "artifact": True,
        },
    }
