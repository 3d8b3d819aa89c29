"""Scores of single documents: gathered over ranks, kept as a table, read again by the report."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.scores import DocumentScores
from golf_lightning.files import write_whole

# N documents of the stream

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(slots=True)
class DocumentTable:
    """Nats of each document under every way of scoring that a run has tried.

    Attributes:
        targets: ``[N]`` scored targets, in the order of the split.
        bytes: ``[N]`` bytes of text that they stand for.
        nats: by the score's name in ``result.json``, ``[N]`` negative log-likelihood in nats.
    """

    targets: Counts
    bytes: Counts
    nats: dict[str, Floats] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write a CSV with a line for each document, whole or not at all."""
        with write_whole(path, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["document", "targets", "bytes", *(f"{name}_nats" for name in self.nats)])
            columns = [self.targets.tolist(), self.bytes.tolist(), *(nats.tolist() for nats in self.nats.values())]
            writer.writerows([index, *row] for index, row in enumerate(zip(*columns, strict=True)))

    @classmethod
    def read(cls, path: str | Path) -> "DocumentTable":
        """Read what :meth:`write` wrote.

        Raises:
            GolfError: the file is damaged.
        """
        try:
            with open(path, encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            columns = dict(zip(header, zip(*rows, strict=True), strict=True))
            nats = {
                name.removesuffix("_nats"): np.array(values, dtype=np.float64)
                for name, values in columns.items()
                if name.endswith("_nats")
            }
            return cls(np.array(columns["targets"], np.int64), np.array(columns["bytes"], np.int64), nats)
        except (ValueError, KeyError) as error:
            raise GolfError(f"{path} is not a table of documents ({error}); score the run again.") from None


def add_documents(
    table: DocumentTable | None, name: str, scores: DocumentScores, device: torch.device
) -> DocumentTable:
    """Put one way of scoring into a table; with several ranks, each brings its documents and all get all of them.

    Args:
        table: what is known already, or ``None``.
        name: the score's name in ``result.json``.
        scores: this rank's documents; those of other ranks count zero.
        device: where collectives run.

    Returns:
        ``table``, or a new one where there was none or its documents are others.
    """
    nats_N, targets_N, bytes_N = (part.to(device) for part in (scores.nats, scores.targets, scores.bytes))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for part in (nats_N, targets_N, bytes_N):
            dist.all_reduce(part)
    targets, count = targets_N.cpu().numpy(), bytes_N.cpu().numpy()
    if table is None or not np.array_equal(table.targets, targets):
        table = DocumentTable(targets, count)
    table.nats[name] = nats_N.cpu().numpy()
    return table
