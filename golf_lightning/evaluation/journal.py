"""What scoring has finished, on disk, so that an interrupted run goes on instead of starting again."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.files import read_json, write_json
from golf_lightning.model.gpt import GPT

SPEED_ONLY = ("slots", "rows", "order", "budget_seconds")
"""Settings that move no score beyond rounding."""


def fingerprint(model: GPT, stream: DocumentStream, config: TTTConfig) -> str:
    """SHA-256 over everything that a score depends on: weights, network, documents and settings."""
    digest = hashlib.sha256()
    settings = {name: value for name, value in asdict(config).items() if name not in SPEED_ONLY}
    digest.update(repr((settings, model.config.to_dict(), model.recurrent, str(model.compute_dtype))).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(np.ascontiguousarray(stream.tokens[: stream.total_targets + 1]).tobytes())
    return digest.hexdigest()


class Journal:
    """One rank's file of finished documents, in a folder that all ranks share.

    A file is written whole or not at all and holds nats and targets by document, and the seconds up to its last
    writing. Documents that were open when a run was interrupted are scored anew from their first target; nothing of
    them is kept.

    Args:
        folder: made when first written to.
        rank: whose file this is.
        world_size: ranks of this run; the files of earlier runs with any number are shared out among them. No rank may
            write before all have made their journals.
        identity: from :func:`fingerprint`.

    Attributes:
        known: nats and targets of documents that this rank answers for.
        all_known: the same of every rank, as found on disk at the beginning.
        spent: seconds of the earlier runs together, ``score`` and ``warm_up``, each run's by its slowest rank.

    Raises:
        GolfError: the folder holds sums of another model, other data or other settings.
    """

    def __init__(self, folder: Path, rank: int, world_size: int, identity: str) -> None:
        self.path, self.identity = folder / f"rank{rank}.json", identity
        self.known: dict[int, tuple[float, int]] = {}
        self.all_known: dict[int, tuple[float, int]] = {}
        self.spent = {"score": 0.0, "warm_up": 0.0}
        for path in sorted(folder.glob("rank*.json")) if folder.is_dir() else []:
            held = read_json(path)
            if held.get("identity") != identity:
                raise GolfError(
                    f"{folder} holds an interrupted scoring of another model, other data or other settings; "
                    "delete it, or choose another --run.name."
                )
            # Files of more ranks, once shared out, lie beside the files that have taken them over.
            documents = {
                int(i): (float(nats), int(targets))
                for i, (nats, targets) in held["documents"].items()
                if int(i) not in self.all_known
            }
            self.all_known |= documents
            # Files of earlier versions know no seconds. Each file's include those of the runs before.
            for stage, seconds in held.get("seconds", {}).items():
                self.spent[stage] = max(self.spent[stage], float(seconds))
            if int(path.stem.removeprefix("rank")) % world_size == rank:
                self.known |= documents

    def write(self, finished: Mapping[int, tuple[float, int]], **seconds: float) -> None:
        """Put nats and targets of newly finished documents on disk, beside those known before.

        Args:
            finished: the newly finished documents.
            seconds: of this run up to now, by the stages of ``spent``.
        """
        self.known |= finished
        documents = {str(i): list(values) for i, values in sorted(self.known.items())}
        total = {stage: spent + seconds.get(stage, 0.0) for stage, spent in self.spent.items()}
        write_json(self.path, {"identity": self.identity, "seconds": total, "documents": documents})

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the files of a scoring that has ended; one rank calls it, after all are done."""
        for path in folder.glob("rank*.json"):
            path.unlink()
        if folder.is_dir():
            folder.rmdir()
