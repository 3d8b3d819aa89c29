"""A run's own account of itself, as it lies in the run folder."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golf_lightning.errors import GolfError
from golf_lightning.files import read_json
from golf_lightning.reporting.runs import scored_sha256, status


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run's own account.

    Attributes:
        folder: the run folder.
        result: ``result.json`` of the training run.
        test: ``test.json`` of a later scoring of its artifact, where there was one that came to its end.
        passed_over: how a later scoring ended that did not come to its end, and so does not count.
        access: ``access.json``, where there is one.
        environment: ``environment.json``, where there is one.
        trained_s: training clock at the last line of the metrics; 0 where no clock was running.
    """

    folder: Path
    result: dict[str, Any]
    test: dict[str, Any] | None
    passed_over: str | None
    access: list[dict[str, Any]] | None
    environment: dict[str, Any]
    trained_s: float

    @classmethod
    def load(cls, folder: str | Path) -> "RunRecord":
        """Read a run folder.

        Raises:
            GolfError: there is no finished run in it, or a file is damaged.
        """
        folder = Path(folder)
        if not (folder / "result.json").is_file():
            raise GolfError(f"{folder} holds no finished run (result.json is missing); give --run the folder of one.")
        optional = {name: _optional(folder / f"{name}.json") for name in ("test", "access", "environment")}
        result = read_json(folder / "result.json")
        for name, kind in (("result", dict), ("test", dict), ("environment", dict), ("access", list)):
            value = result if name == "result" else optional[name]
            if value is not None and not isinstance(value, kind):
                raise GolfError(f"{folder / name}.json does not hold what a run writes; score the run again.")
        ended = "finished" if optional["test"] is None else status(optional["test"])
        return cls(
            folder=folder,
            result=result,
            test=optional["test"] if ended == "finished" else None,
            passed_over=None if ended == "finished" else ended,
            access=optional["access"],
            environment=optional["environment"] or {},
            trained_s=max((_last_clock(path) for path in folder.glob("metrics/*/metrics.csv")), default=0.0),
        )

    @property
    def scores(self) -> dict[str, Any]:
        """Every score of the run by name, those of the later scoring marked so."""
        later = {f"{name} (test)": score for name, score in (self.test or {}).get("scores", {}).items()}
        return {**self.result.get("scores", {}), **later}

    @property
    def scored(self) -> dict[str, Any]:
        """The account of the scoring that counts: of a process of its own where there was one."""
        return self.result if self.test is None else self.test

    @property
    def scored_sha256(self) -> str | None:
        """SHA-256 of the file that the score that counts was made from, where that is known."""
        return scored_sha256(self.scored)

    def scored_another(self, artifact_sha256: str) -> bool:
        """Whether the score that counts is known to be of another file than this artifact."""
        return self.scored_sha256 not in (None, artifact_sha256)

    @property
    def hardware(self) -> str:
        """The GPUs of the run, in words."""
        gpus = self.environment.get("gpus") or []
        return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "a machine without GPUs"


def _optional(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _last_clock(path: Path) -> float:
    with path.open(newline="", encoding="utf-8") as file:
        values = [row["train/seconds"] for row in csv.DictReader(file) if row.get("train/seconds")]
    return max(map(float, values), default=0.0)
